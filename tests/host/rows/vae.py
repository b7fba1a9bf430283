"""The VAE: where a picture is decoded and encoded, other VAEs, NaN, and what others hang on it."""

from __future__ import annotations

from typing import Any

from ..outcome import CLEAN, Speed, part
from ..picture import AGAIN, BASE, Picture, picture
from ..row import Row, row
from ..steps import Code, Options
from .features import BIG
from .networks import bits
from .server_code import (
    FORGET_FAILURES,
    FORWARDS_OUT,
    HOOK_OUT,
    OUR_VAE_FAILURE,
    VAE_ATTENTION_IN,
    VAE_CLASS_IN,
    VAE_CLASS_OUT,
    VAE_DECODER_IN,
    VAE_DTYPE,
    VAE_HOOK_IN,
    VAE_TILES_OUT,
    VAE_TO,
)
from .shapes import HIRES, HIRES_PIXELS, ODD

DECODER: dict[str, Any] = {"runs": ("decoder",)}
BOTH: dict[str, Any] = {"runs": ("encoder", "decoder")}
IMAGE: dict[str, Any] = {"image": True} | BOTH
OTHER, NAN = "other_vae.safetensors", "nan_vae.safetensors"
PATCHED = part(r"forward|instance|replaced")
FAILED = part("failed")
TILED = {"hypertile_enable_vae": True, "hypertile_max_tile_vae": 128, "hypertile_swap_size_vae": 1}
DTYPE_NOW = Code("dtype", VAE_DTYPE)
TO_FLOAT32, TO_BFLOAT16 = (Code(f"to {name}", VAE_TO.format(name)) for name in ("float32", "bfloat16"))


def use(name: str) -> Options:
    """Change the VAE."""
    return Options({"sd_vae": name})


def nan(label: str, **fields: Any) -> Picture:
    """A picture that the VAE makes NaN of."""
    return picture(label, **DECODER | fields)


def rows() -> tuple[Row, ...]:
    """All rows of this file."""
    return (*shape_rows(), *_switch_rows(), *_nan_rows(), *_feature_rows())


def shape_rows() -> tuple[Row, ...]:
    shapes: dict[str, dict[str, Any]] = {
        "txt2img": DECODER,
        "batch 2": DECODER | {"batch_size": 2},
        "odd size": DECODER | ODD,
        "hires": DECODER | HIRES,
        "hires, not latent": BOTH | HIRES_PIXELS,
        "hires, not latent, odd size": BOTH | HIRES_PIXELS | ODD,
        "img2img": IMAGE,
        "img2img, batch 2": IMAGE | {"batch_size": 2},
        "img2img, odd size": IMAGE | {"width": 200, "height": 136},
        "img2img with mask": IMAGE | {"mask": True},
    }
    return tuple(row(name, picture(name, **fields)) for name, fields in shapes.items())


def _switch_rows() -> tuple[Row, ...]:
    override = {"override_settings": {"sd_vae": OTHER}}
    return (
        row(
            "VAE of the settings",
            BASE,
            bits(),
            use(OTHER),
            picture("other", moves="base", **DECODER),
            bits("weights of the other"),
            picture("other, img2img", **IMAGE),
            use("None"),
            picture("back", same="base", **DECODER),
            bits("weights again"),
        ),
        row(
            "VAE of a picture",
            use("Automatic"),  # what is in no settings file, the webui does not put back
            BASE,
            picture("other", moves="base", **DECODER | override),
            AGAIN,
            picture("other, img2img", **IMAGE | override),
            AGAIN,
            bits("weights again"),
        ),
        row(
            "VAE kept in memory",
            Options({"sd_vae_checkpoint_cache": 2}),
            BASE,
            use(OTHER),
            picture("other", moves="base", **DECODER),
            use("None"),
            picture("back", same="base", **DECODER),
            use(OTHER),
            picture("other again", same="other", **DECODER),
        ),
    )


def switch_row() -> Row:
    """Another VAE and back, for SDXL, where stock itself does not come back to all bits of its picture."""
    return row(
        "VAE of the settings",
        BASE,
        use(OTHER),
        picture("other", moves="base", **DECODER),
        picture("other, img2img", **IMAGE),
        use("None"),
        picture("back", moves="other", **DECODER),
    )


def _nan_rows() -> tuple[Row, ...]:
    back = (TO_FLOAT32, use("None"), AGAIN)  # in this order: weights that were in bfloat16 have lost bits
    return (
        row("NaN", BASE, use(NAN), nan("NaN", fails=True), DTYPE_NOW, *back),
        row(
            "NaN, no retry",
            Options({"auto_vae_precision": False}),
            BASE,
            use(NAN),
            nan("NaN", fails=True),
            DTYPE_NOW,
            *back,
        ),
        row(
            "NaN, then bfloat16",
            Options({"auto_vae_precision_bfloat16": True}),
            BASE,
            use(NAN),
            nan("NaN", moves="base"),
            DTYPE_NOW,
            nan("NaN again", fails=True),
            *back,
        ),
        row(
            "NaN in bfloat16, then float32",
            BASE,
            use(NAN),
            TO_BFLOAT16,
            nan("NaN", moves="base"),
            DTYPE_NOW,
            use("None"),
            picture("float32", same="base", **DECODER),
        ),
    )


def _feature_rows() -> tuple[Row, ...]:
    return (
        row(
            "tiling",
            BASE,
            picture("tiled", tiling=True, moves="base", **DECODER),
            picture("tiled, img2img", tiling=True, **IMAGE),
            AGAIN,
        ),
        row(
            "HyperTile",
            use(OTHER),  # whose attention can be seen
            picture("base", **BIG | DECODER),
            Options(TILED),
            picture("tiled", moves="base", speed=PATCHED, **BIG | DECODER),
            Options({"hypertile_enable_vae": False}),
            picture("off", speed=PATCHED, **BIG | DECODER),
            Code("take out", VAE_TILES_OUT),  # which the webui never does
            picture("base again", same="base", **BIG | DECODER),
        ),
        row(
            "a failure of ours",
            BASE,
            Code("set our failure up", OUR_VAE_FAILURE, only_ours=True),
            picture("with our failure", speed=FAILED),
            picture("after it", speed=FAILED),
            Code("forget failures", FORGET_FAILURES, only_ours=True),
            picture("base again", same="base", **DECODER),
            tracebacks=True,
        ),
        _foreign("decoder.forward replaced", VAE_DECODER_IN, FORWARDS_OUT, CLEAN),
        _foreign("attention's forward replaced", VAE_ATTENTION_IN, FORWARDS_OUT, PATCHED),
        _foreign("attention's class replaced", VAE_CLASS_IN, VAE_CLASS_OUT, PATCHED),
        _foreign("forward hook on a leaf", VAE_HOOK_IN, HOOK_OUT, part("hook")),
    )


def _foreign(name: str, put_in: str, take_out: str, speed: Speed) -> Row:
    return row(
        name,
        use(OTHER),
        BASE,
        Code("put in", put_in),
        picture("patched", speed=speed, moves="base"),
        picture("patched, img2img", speed=speed, image=True),
        Code("take out", take_out),
        picture("base again", same="base", **DECODER),
        picture("img2img", **IMAGE),
    )
