"""ControlNet, alone and with LoRA."""

from __future__ import annotations

from typing import Any

from ..outcome import part
from ..picture import AGAIN, BASE, loras, picture, unit
from ..row import Row, row
from .networks import FOUR, bits, merged
from .shapes import HIRES, LONG

ONE = unit()
TWO = (unit(), unit("tiny_cn_b", turned=True, coloured=True))
REFERENCE = unit("None", module="reference_only", coloured=True, threshold_a=0.5)
REPLACED = r"forward|reference|replaced|instance"
UNITS = {
    "one unit": (ONE,),
    "two units": TWO,
    "weight 0.5": (unit(weight=0.5),),
    "guidance 0.3 to 0.7": (unit(guidance_start=0.3, guidance_end=0.7),),
    "low_vram": (unit(low_vram=True),),
    "control matters more": (unit(control_mode="ControlNet is more important"),),
    "prompt matters more": (unit(control_mode="My prompt is more important"),),
}
FIELDS: dict[str, dict[str, Any]] = {
    "hires": HIRES,
    "batch 2": {"batch_size": 2},
    "odd size": {"width": 200, "height": 136},
    "img2img": {"image": True},
    "cfg 1": {"cfg_scale": 1},
    "long prompt": {"prompt": LONG},
    "AND": {"prompt": "a cat AND a red car :0.7"},
}
LORA = {"prompt": loras("tiny_lora_b")}


def rows() -> tuple[Row, ...]:
    """The rows for SD1, which has all of them."""
    kinds = [
        row(
            f"{name}",
            picture("base", steps=6),
            picture(name, units=units, moves="base", steps=6),
            picture("off again", same="base", steps=6),
        )
        for name, units in UNITS.items()
    ]
    shapes = [
        row(
            f"{name}",
            picture("without", **fields),
            picture(name, units=(ONE,), moves="without", **fields),
        )
        for name, fields in FIELDS.items()
    ]
    return (
        *kinds,
        *shapes,
        row(
            "weight 0",
            BASE,
            picture("on", units=(ONE,), moves="base"),
            picture("weight 0", units=(unit(weight=0.0),), same="base"),
        ),
        row(
            "on and off in turn",
            BASE,
            picture("on", units=(ONE,), moves="base"),
            AGAIN,
            picture("other", units=(TWO[1],), moves="on"),
            picture("both", units=TWO, moves="other"),
            picture("on again", units=(ONE,), same="on"),
            AGAIN,
        ),
        row(
            "LoRA and ControlNet",
            BASE,
            picture("LoRA", moves="base", **LORA),
            picture("both", moves="LoRA", units=(ONE,), **LORA),
            merged(),
            picture("four LoRAs, two units", moves="both", units=TWO, prompt=loras(*FOUR)),
            merged("weights, four"),
            picture("ControlNet", moves="both", units=(ONE,)),
            picture("both, hires", units=(ONE,), **LORA | HIRES),
            picture("LoRA again", same="LoRA", **LORA),
            AGAIN,
            bits("weights without"),
        ),
        row(
            "reference_only",
            BASE,
            picture("reference", units=(REFERENCE,), moves="base", speed=part(REPLACED)),
            AGAIN,
            picture("with ControlNet", units=(REFERENCE, ONE), moves="base", speed=part(REPLACED)),
            AGAIN,
            picture("ControlNet after it", units=(ONE,), moves="base"),
        ),
    )


def xl_rows() -> tuple[Row, ...]:
    """The rows for SDXL, whose control models take the sizes of the picture too."""
    one = (unit("tiny_xl_cn_a"),)
    both = (*one, unit("tiny_xl_cn_b", turned=True, coloured=True, weight=0.6))
    lora = {"prompt": loras("tiny_xl_lora_a")}
    return (
        row(
            "ControlNet",
            BASE,
            picture("ControlNet", units=one, moves="base"),
            picture("two units", units=both, moves="ControlNet"),
            picture("LoRA", units=one, moves="ControlNet", **lora),
            picture("hires", units=one, **HIRES),
            picture("batch 2, odd size", units=one, batch_size=2, width=200, height=136),
            picture("img2img", units=one, image=True),
            picture("long prompt", units=one, prompt=LONG),
            picture("part of the steps", units=(unit("tiny_xl_cn_a", guidance_start=0.3),), steps=6),
            AGAIN,
            picture("ControlNet again", units=one, same="ControlNet"),
        ),
        row(
            "reference_only",
            BASE,
            picture("reference", units=(REFERENCE,), moves="base", speed=part(REPLACED)),
            picture("with ControlNet", units=(REFERENCE, *one), moves="reference", speed=part(REPLACED)),
            AGAIN,
            picture("ControlNet after it", units=one, moves="base"),
        ),
    )
