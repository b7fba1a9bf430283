"""Which models run how, and what is merged into them: models, LoRAs, ControlNets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib_accel.ui.markup import Column, amount, card, empty, items, number, proportions, reasons, table, text

_CONTROLNET = "ControlNet"
_LORA_COLUMNS = (Column("Name"), Column("UNet", True), Column("Text encoder", True))
_LEGEND = (
    '<p class="accel-legend"><span><i class="accel-direct"></i>fast</span>'
    '<span><i class="accel-compiled"></i>fast, compiled</span>'
    '<span><i class="accel-host"></i>the webui\'s own code</span></p>'
)


def models(status: Mapping[str, Any]) -> str:
    """The models but for ControlNets, with their blocks by speed and why any of them are slow."""
    rows = [model for model in items(status, "models") if not _is_control(model)]
    body = _rows(rows, status) + _LEGEND if rows else empty("no model yet")
    return card("Models", body)


def control_models(status: Mapping[str, Any]) -> str:
    """The ControlNets that are loaded, in the same way."""
    rows = [model for model in items(status, "models") if _is_control(model)]
    return card("ControlNets", _rows(rows, status) if rows else empty("no ControlNet loaded"))


def networks(status: Mapping[str, Any]) -> str:
    """The LoRAs that are merged into the weights now, with their strengths."""
    rows = [
        (text(each.get("name", "")), _strength(each.get("unet")), _strength(each.get("text_encoder")))
        for each in items(status, "networks")
    ]
    body = table(_LORA_COLUMNS, rows, ident="accel_networks_table") if rows else empty("no LoRA merged")
    return card("LoRAs merged now", body)


def _is_control(model: Mapping[str, Any]) -> bool:
    return str(model.get("name", "")).startswith(_CONTROLNET)


def _rows(rows: Sequence[Mapping[str, Any]], status: Mapping[str, Any]) -> str:
    advice = status.get("advice") or {}
    return f'<div class="accel-models">{"".join(_row(model, advice) for model in rows)}</div>'


def _row(model: Mapping[str, Any], advice: Mapping[str, Any]) -> str:
    blocks = model.get("blocks") or {}
    parts = [(code, blocks.get(code, 0)) for code in ("direct", "compiled", "host")]
    total = sum(amount(count) for _, count in parts)
    fast = total - amount(blocks.get("host"))
    name = str(model.get("name", "")).removeprefix(_CONTROLNET).strip() or _CONTROLNET
    said = f"{number(fast)} of {number(total)} blocks fast"
    return (
        f'<div class="accel-model"><span class="accel-name">{text(name)}</span>'
        f"{proportions(parts, f'{name}: {said}')}"
        f'<span class="accel-said">{said}</span></div>{reasons(model.get("reasons") or {}, advice)}'
    )


def _strength(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else number(value)
