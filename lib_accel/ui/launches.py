"""CUDA graphs: what is captured and replayed, and why other calls are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_accel.ui.markup import amount, card, empty, number, reasons


def launches(status: Mapping[str, Any]) -> str:
    """Graphs in a line, and under it why calls are launched kernel by kernel, with what to do about it."""
    made = status.get("launches") or {}
    facts = "".join(f"<span>{fact}</span>" for fact in _facts(made))
    said = (
        f'<p class="accel-facts">{facts}</p>'
        if facts
        else empty("nothing captured; only NVIDIA GPUs have them")
    )
    return card("CUDA graphs", said + reasons(made.get("reasons") or {}, status.get("advice") or {}))


def _facts(made: Mapping[str, Any]) -> list[str]:
    """What there is to tell; nothing of what is nought."""
    if not amount(made.get("captures")):
        return []
    facts = [
        f"{number(made.get('graphs', 0))} graphs in {number(made.get('mib'), 0)} MiB",
        f"{number(made.get('captures'))} captured in {number(made.get('capture_s'), 1)} s",
        f"{number(made.get('replays', 0))} replays",
    ]
    if amount(made.get("evicted")):
        facts.append(f"{number(made['evicted'])} dropped for lack of memory")
    return facts
