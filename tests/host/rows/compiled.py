"""Compiled blocks: asked for by the setting, made while nothing is drawn, and the pictures stay the same."""

from __future__ import annotations

from typing import Any

from ..outcome import host
from ..picture import BASE, Picture, loras, picture, unit
from ..product_steps import post
from ..row import Row, row
from ..steps import GraphsMade, OurOptions, RanCompiled, Step

FORCED = OurOptions({"accel_code": "compiled"})
HOST = OurOptions({"accel_code": "host"})
AS_HOST = host("option code")


def thrice(label: str, **fields: Any) -> tuple[Step | Picture, ...]:
    """A picture that asks for graphs, one that proves them, one that they make."""
    return (
        picture(label, **fields),
        GraphsMade(),
        picture(f"{label}, proved", **fields | {"moves": ""}),
        picture(f"{label}, compiled", **fields | {"moves": ""}),
        RanCompiled(),
    )


def rows() -> tuple[Row, ...]:
    """All rows of this file."""
    lora = {"prompt": loras("tiny_lora_a"), "moves": "base"}
    return (
        row(
            "compiled",
            BASE,
            FORCED,
            *thrice("asked for", same=""),
            picture("LoRA", **lora),
            RanCompiled(),
            picture("LoRA, less", prompt=loras("tiny_lora_a:0.4"), moves="LoRA"),
            RanCompiled(),
            *thrice("ControlNet", units=(unit(),), moves="base"),
            *thrice("other size", width=200, height=136),
            *thrice("batch 2", batch_size=2),
            picture("at last"),
            RanCompiled(),
        ),
        row(
            "warm-up",
            BASE,
            FORCED,
            post("warmup", {"width": 136, "height": 104}, has=("pictures", "seconds")),
            picture("warm", width=136, height=104),
            RanCompiled(),
        ),
        row(
            "the host's own blocks",
            HOST,
            picture(
                "LoRA", speed=AS_HOST, prompt=loras("tiny_lora_a")
            ),  # else the webui keeps our conditioning
            picture("host", speed=AS_HOST, moves="LoRA"),
            picture("host again", speed=AS_HOST, same="host"),
        ),
    )
