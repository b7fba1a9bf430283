"""What a sampling step asks of torch, with our code and without."""

from __future__ import annotations

from typing import Any

from ..picture import loras, picture, unit
from ..row import Row, row
from ..step_cost import Cost
from .shapes import LONG

_EULER_A: dict[str, Any] = {"steps": 8, "sampler_name": "Euler a"}
SAMPLERS = (
    picture("Euler a", **_EULER_A),
    picture("DPM++ 2M Karras", steps=8, sampler_name="DPM++ 2M", scheduler="Karras"),
)
PICTURES = (
    *SAMPLERS,
    picture("without CFG", cfg_scale=1, **_EULER_A),
    picture("prompts of two lengths", prompt=LONG, **_EULER_A),
    picture("two LoRAs", prompt=loras("tiny_lora_a", "tiny_lora_b"), **_EULER_A),
    picture("ControlNet", units=(unit(),), **_EULER_A),
)


def rows() -> tuple[Row, ...]:
    """All pictures."""
    return tuple(row(each.label, Cost(each)) for each in PICTURES)


def xl_rows() -> tuple[Row, ...]:
    """Those of plain prompts, for SDXL."""
    return tuple(row(each.label, Cost(each)) for each in SAMPLERS)
