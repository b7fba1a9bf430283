"""Features of the webui and foreign patches that change how the UNet computes."""

from __future__ import annotations

from ..outcome import ANY, CLEAN, Speed, host, part
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
    UPCAST,
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
UPCASTING = host("--upcast-sampling")
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


def mode_rows(lora: str = "tiny_lora_b", moves: str = "base") -> tuple[Row, ...]:
    """Modes of the webui itself, with a LoRA for the checkpoint; `moves`: what merged tokens and tiles do."""
    prompt = {"prompt": loras(lora)}
    return (
        row("tiling", BASE, picture("tiled", tiling=True, moves="base"), AGAIN),
        row(
            "token merging",
            picture("base", **BIG),
            Options({"token_merging_ratio": 0.5}),
            picture("merged", moves=moves, speed=MERGED, **BIG),
            picture("merged, LoRA", moves="merged", speed=MERGED, **BIG | prompt),
            Options({"token_merging_ratio": 0.0}),
            picture("base again", same="base", **BIG),
            Options({"token_merging_ratio_hr": 0.5}),
            picture("merged in hires only", speed=MERGED, **HIRES),
        ),
        row(
            "hypertile",
            picture("base", **BIG),
            Options({"hypertile_enable_unet": True, "hypertile_max_tile_unet": 64}),
            picture("tiled", moves=moves, speed=TILED, **BIG),
            picture("tiled, LoRA", moves="tiled", speed=TILED, **BIG | prompt),
            Options({"hypertile_enable_unet": False}),
            picture("base again", same="base", **BIG),
        ),
    )


def upcast_rows() -> tuple[Row, ...]:
    """For a webui with --upcast-sampling, which on a CPU means nothing: it is for half precision only."""
    return (
        row(
            "the flag",
            Code(
                "what it means",
                "from modules import devices; print(devices.unet_needs_upcast)",
                prints="False",
            ),
            BASE,
            picture("LoRA", moves="base", **LORA),
        ),
        row(
            "as on a GPU, but in float32",
            BASE,
            Code("on", UPCAST.format(True)),
            picture("upcast", speed=UPCASTING),
            picture("upcast, ControlNet", speed=UPCASTING, moves="upcast", units=(unit(),)),
            picture("upcast, img2img", speed=UPCASTING, image=True),
            picture("upcast, LoRA", speed=UPCASTING, moves="upcast", **LORA),  # or its conditioning is kept
            Code("off", UPCAST.format(False)),
            AGAIN,
            picture("LoRA", moves="base", **LORA),
        ),
    )


def rows() -> tuple[Row, ...]:
    """All rows of this file for the plain webui, but those of attention."""
    return (
        *mode_rows(),
        row(
            "hypernetwork",
            BASE,
            picture("with it", moves="base", speed=HYPER, **HYPERNET),
            picture("with it, odd size", speed=HYPER, width=200, height=136, **HYPERNET),
            AGAIN,
            picture("LoRA", moves="base", **LORA),
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
