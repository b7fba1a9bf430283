"""What the last pictures took: a table of them, and what the latest one ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_accel.ui.markup import Column, amount, card, empty, items, number, percent, reasons, table, text

_COLUMNS = (
    Column("Ended"),
    Column("Size"),
    Column("Batch", True),
    Column("Steps", True),
    Column("Seconds", True),
    Column("it/s", True),
    Column("LoRAs", True),
    Column("ControlNets", True),
    Column("Fast blocks", True),
    Column("Against stock", True),
    Column("Largest difference", True),
)


def pictures(status: Mapping[str, Any]) -> str:
    """The last generations, newest first, and the blocks of the latest one."""
    rows = [_row(picture) for picture in items(status, "pictures")]
    body = table(_COLUMNS, rows, ident="accel_pictures_table") if rows else empty("no picture yet")
    return card("Last pictures", body + _latest(status))


def _row(picture: Mapping[str, Any]) -> tuple[str, ...]:
    get = picture.get
    return (
        text(get("ended", "")),
        f"{number(get('width'))}&#8239;x&#8239;{number(get('height'))}",
        number(get("batch_size")),
        number(get("steps")),
        number(get("seconds"), 2),
        number(get("its_per_s"), 1),
        _counted(get("networks"), get("fuse_s")),
        number(get("control_models")),
        _fast(picture),
        _ratio(get("ratio")),
        number(get("largest_difference")),
    )


def _counted(networks: Any, fuse_s: Any) -> str:
    ms = 1000 * amount(fuse_s)
    took = f' <span class="accel-quiet">in {ms:.0f} ms</span>' if ms >= 1 else ""
    return number(networks) + took


def _fast(picture: Mapping[str, Any]) -> str:
    if not picture.get("is_accelerated", True):
        return "off"
    if not amount(picture.get("total")):
        return number(None)
    return f"{percent(picture.get('fast'), picture.get('total')):.0f} %"


def _ratio(ratio: Any) -> str:
    return number(None) if ratio is None else f"<b>{number(ratio, 2)}x</b>"


def _latest(status: Mapping[str, Any]) -> str:
    """The blocks that the latest picture ran, and why some of them were slow."""
    done = status.get("generation") or {}
    blocks = done.get("blocks") or {}
    total = sum(amount(count) for count in blocks.values())
    if not total:
        return ""
    facts = [
        f"{number(total - amount(blocks.get('host')))} of {number(total)} calls of blocks fast",
        f"{number(done.get('model_calls', 0))} calls of models",
        f"LoRA files read in {1000 * amount(done.get('load_s')):.0f} ms",
        f"merged in {1000 * amount(done.get('fuse_s')):.0f} ms",
    ]
    counts = (("LoRAs", done.get("networks")), ("ControlNets", done.get("control_models")))
    facts += [f"{label}: {number(count)}" for label, count in counts if amount(count)]
    slow = reasons(done.get("reasons") or {}, status.get("advice") or {})
    said = "".join(f"<span>{fact}</span>" for fact in facts)
    return f'<p class="accel-facts"><b>Latest picture</b>{said}</p>{slow}'
