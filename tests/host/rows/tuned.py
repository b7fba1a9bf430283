"""Operators by what was measured to be the fastest, and weights channels last; see tests/host/tuned.py."""

from __future__ import annotations

from ..outcome import OFF
from ..picture import BASE, Picture, loras, picture, unit
from ..product_steps import SIZE, post
from ..row import Row, row
from ..steps import Code, OurOptions, ReloadUi, Step, Switch
from ..tuned_steps import (
    BEGIN_ANEW,
    INSTALL,
    PARTLY,
    RIVAL,
    TORCH,
    Computed,
    Forgotten,
    Held,
    Left,
    Measured,
)
from .checkpoints import use
from .networks import bits, merged
from .product import AS_BEFORE, KEEP
from .server_code import UNET
from .shapes import HIRES

# One line: how the weights of 3x3 convolutions lie in UNet and VAE.
LIES = (
    UNET
    + """
import torch
found = []
for part in unet, model.first_stage_model:
    weights = [each.weight for each in part.modules() if isinstance(each, torch.nn.Conv2d)]
    weights = [each for each in weights if each.shape[2:] == (3, 3)]
    last = sum(not each.is_contiguous() and each.is_contiguous(memory_format=torch.channels_last)
               for each in weights)
    found.append({0: 'first', len(weights): 'last'}.get(last, f'{last} of {len(weights)} last'))
print(*found)
"""
)
LAST = Code("weights lie channels last", LIES, only_ours=True, prints="last last")
FIRST = Code("weights lie channels first", LIES, prints="first first")
INSTALLED = Code("stand-ins", INSTALL, only_ours=True, prints="")
PARTS = ("UNet", "VAE")
DIRECT, AUTO = OurOptions({"accel_code": "direct"}), OurOptions({"accel_code": "auto"})
# What each row begins with; only the first one measures something.
TUNED: tuple[Step, ...] = (INSTALLED, post("warmup", SIZE, has=("pictures", "others")), LAST)
LORA = {"prompt": loras("tiny_lora_b")}
SMALL_HIRES = HIRES | {"width": 96, "height": 96}
CONTROLLED = {"units": (unit(),)}


def by(who: str, label: str = "tuned", **fields: object) -> Computed:
    """A picture whose operators must be computed so."""
    return Computed(picture(label, **fields), who)


ONCE, AGAIN = by(RIVAL), by(RIVAL, "tuned again", same="tuned")


def _first_rows() -> tuple[Row, ...]:
    return (
        row(
            "warm-up",
            INSTALLED,
            Forgotten(least=0),
            Computed(BASE, TORCH),
            KEEP,
            FIRST,
            post("warmup", SIZE, has=("pictures", "operators", "others")),
            Measured("what is measured", formats=PARTS, waits=False),
            LAST,
            AS_BEFORE,
            ONCE,
            AGAIN,
            bits(),
        ),
        row(
            "LoRA on, half, off",
            *TUNED,
            ONCE,
            KEEP,
            by(RIVAL, "LoRA", moves="tuned", **LORA),
            merged("weights with LoRA"),
            by(RIVAL, "half", moves="LoRA", prompt=loras("tiny_lora_b:0.4")),
            merged("weights with half of it"),
            AGAIN,
            AS_BEFORE,
            LAST,
        ),
        row(
            "ControlNet",
            *TUNED,
            ONCE,
            picture("ControlNet", moves="tuned", **CONTROLLED),
            Measured(waits=False),
            by(RIVAL, "ControlNet, tuned", moves="tuned", **CONTROLLED),
            Measured("ControlNet's weights", formats=(*PARTS, "ControlNet"), waits=False),
            by(RIVAL, "ControlNet and LoRA", moves="ControlNet, tuned", **CONTROLLED | LORA),
            AGAIN,
        ),
    )


def _size_rows() -> tuple[Row, ...]:
    return (
        row(
            "img2img",
            *TUNED,
            ONCE,
            by(PARTLY, "img2img", image=True),
            Measured("its operators are measured"),
            by(RIVAL, "img2img, tuned", image=True),
            picture("masked", image=True, mask=True),
            AGAIN,
        ),
        row(
            "other sizes",
            *TUNED,
            ONCE,
            by(PARTLY, "batch 2", batch_size=2),
            Measured("its operators are measured"),
            by(RIVAL, "batch 2, tuned", batch_size=2),
            picture("odd size", width=200, height=136),
            picture("hires", **SMALL_HIRES),
            Measured("theirs are measured"),
            by(RIVAL, "odd size, tuned", width=200, height=136),
            by(RIVAL, "hires, tuned", **SMALL_HIRES),
            AGAIN,
        ),
    )


def _end_rows() -> tuple[Row, ...]:
    return (
        row(
            "off and direct",
            *TUNED,
            ONCE,
            picture("off", accel=False, speed=OFF),
            FIRST,
            AGAIN,
            LAST,
            DIRECT,
            by(TORCH, "direct"),
            FIRST,
            AUTO,
            AGAIN,
            LAST,
            Switch(on=False),
            picture("off by API", speed=OFF, **LORA),
            FIRST,
            Switch(on=True),
            AGAIN,
            LAST,
        ),
        row(
            "checkpoints",
            *TUNED,
            ONCE,
            *_used("tiny.ckpt"),
            *_used("tiny2.safetensors"),
            use("tiny.safetensors"),
            AGAIN,
            LAST,
            bits(),
        ),
        row("Reload UI", *TUNED, ONCE, KEEP_BITS, ReloadUi(), KEPT_BITS, AGAIN, LAST),
        row(
            "as after a restart",
            *TUNED,
            ONCE,
            Code("begin anew", BEGIN_ANEW, only_ours=True, prints=""),
            FIRST,
            AGAIN,
            LAST,
            Measured("nothing is left to be measured", formats=PARTS, waits=False),
        ),
        row(
            "forgotten, and contests interrupted",
            *TUNED,
            ONCE,
            DIRECT,
            by(TORCH, "direct"),
            AUTO,
            AGAIN,
            LAST,
            Forgotten(),
            by(TORCH, "forgotten", same="direct"),
            FIRST,
            Held(),
            picture("in between", moves="forgotten", **LORA),
            Left(),
            Measured("the rest is measured"),
            picture("with the new weights"),
            Measured("channels last too", formats=PARTS, waits=False),
            by(RIVAL, "tuned once more"),
            LAST,
        ),
    )


# Of both, since a new server has forgotten what a row has stored.
KEEP_BITS, KEPT_BITS = bits("weights before"), bits("weights after")


def _used(checkpoint: str) -> tuple[Step | Picture, ...]:
    """Another checkpoint of the same structure, for which nothing has to be measured."""
    return (
        use(checkpoint),
        by(RIVAL, checkpoint, moves="tuned"),
        LAST,
        bits(f"weights of {checkpoint}"),
        picture(f"{checkpoint} with LoRA", moves=checkpoint, **LORA),
        merged("weights with LoRA"),
    )


def rows() -> tuple[Row, ...]:
    """All rows of this file."""
    return (*_first_rows(), *_size_rows(), *_end_rows())
