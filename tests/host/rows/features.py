"""Features of the webui and foreign patches that change how the UNet computes."""

from __future__ import annotations

from ..outcome import ANY, CLEAN, Speed, part
from ..picture import AGAIN, BASE, loras, picture, unit
from ..row import Row, row
from ..steps import Code, Options
from .server_code import (
    ATTENTION_IN,
    FORWARDS_BACK,
    FORWARDS_OUT,
    HOOK_IN,
    HOOK_OUT,
    LEAVES_IN,
    TORCH_GLOBALS,
    TREE,
)
from .shapes import HIRES

ATTENTIONS: dict[str, Speed] = {
    "sdp - scaled dot product": CLEAN,
    "sdp-no-mem - scaled dot product without memory efficient attention": CLEAN,
    "InvokeAI": CLEAN,
    "Doggettx": CLEAN,
    "sub-quadratic": CLEAN,
    "V1 - original v1": CLEAN,
    "None": CLEAN,
}
MERGED = part(r"token|tome|merg|class")
TILED = part(r"hypertile|forward|instance|replaced")
PATCHED = part(r"forward|instance|replaced")
HYPERNET = {"prompt": "a photo of a cat <hypernet:tiny_hypernetwork:1>"}
HYPER = part(r"hypernet")
HOOKED = part(r"hook")
LORA = {"prompt": loras("tiny_lora_b")}
BIG = {"width": 256, "height": 256, "steps": 3}
TREE_NOW = Code("tree of modules", TREE)


def attention_rows() -> tuple[Row, ...]:
    """Attention optimisations, changed at run time; they also belong into groups with other flags."""
    return tuple(
        row(
            f"attention {name.split(' - ')[0]}",
            BASE,
            Options({"cross_attention_optimization": name}),
            picture("with it", speed=speed),
            picture("with it, LoRA", speed=speed, moves="base", **LORA),
            picture("with it, ControlNet", speed=speed, moves="base", units=(unit(),)),
            picture("with it, odd size", speed=speed, width=200, height=136),
        )
        for name, speed in ATTENTIONS.items()
    )


def foreign_row(name: str, put_in: str, take_out: str, speed: Speed) -> Row:
    """A row with a foreign patch of the model, put in and taken out by code in the server."""
    return row(
        name,
        BASE,
        TREE_NOW,
        Code("put in", put_in),
        picture("patched", speed=speed, moves="base"),
        picture("patched, LoRA", speed=speed, moves="patched", **LORA),
        picture("patched, ControlNet", speed=speed, moves="patched", units=(unit(),)),
        picture("patched, batch 2", speed=speed, batch_size=2),
        Code("take out", take_out),
        picture("base again", same="base"),
        picture("LoRA", moves="base", **LORA),
    )


def rows() -> tuple[Row, ...]:
    """All rows of this file."""
    return (
        row("tiling", BASE, picture("tiled", tiling=True, moves="base"), AGAIN),
        row(
            "token merging",
            picture("base", **BIG),
            Options({"token_merging_ratio": 0.5}),
            picture("merged", moves="base", speed=MERGED, **BIG),
            picture("merged, LoRA", moves="merged", speed=MERGED, **BIG | LORA),
            Options({"token_merging_ratio": 0.0}),
            picture("base again", same="base", **BIG),
            Options({"token_merging_ratio_hr": 0.5}),
            picture("merged in hires only", speed=MERGED, **HIRES),
        ),
        row(
            "hypernetwork",
            BASE,
            picture("with it", moves="base", speed=HYPER, **HYPERNET),
            picture("with it, odd size", speed=HYPER, width=200, height=136, **HYPERNET),
            AGAIN,
            picture("LoRA", moves="base", **LORA),
        ),
        row(
            "hypertile",
            picture("base", **BIG),
            Options({"hypertile_enable_unet": True, "hypertile_max_tile_unet": 64}),
            picture("tiled", moves="base", speed=TILED, **BIG),
            picture("tiled, LoRA", moves="tiled", speed=TILED, **BIG | LORA),
            Options({"hypertile_enable_unet": False}),
            picture("base again", same="base", **BIG),
        ),
        foreign_row("attn2.forward replaced", ATTENTION_IN, FORWARDS_OUT, PATCHED),
        foreign_row("forward of leaves replaced", LEAVES_IN, FORWARDS_OUT, PATCHED),
        foreign_row("forward hook on a leaf", HOOK_IN, HOOK_OUT, HOOKED),
        foreign_row("attn2.forward put back by hand", ATTENTION_IN, FORWARDS_BACK, PATCHED),
        row(
            "what stays changed",
            TREE_NOW,
            Code("globals of torch", TORCH_GLOBALS),
            picture("last", speed=ANY),
        ),
    )
