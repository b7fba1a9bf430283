"""Sizes, batches and prompts: whatever changes the shapes that reach the UNet."""

from __future__ import annotations

from typing import Any

from ..outcome import part
from ..picture import AGAIN, BASE, picture
from ..row import Row, row
from ..steps import Options

SIZES = ((64, 64), (128, 64), (192, 128), (256, 256), (72, 56), (200, 136))
BATCHES: dict[str, dict[str, Any]] = {
    "batch 2": {"batch_size": 2},
    "batch 4": {"batch_size": 4},
    "n_iter 2": {"n_iter": 2},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "Euler a": {"sampler_name": "Euler a"},
    "DPM++ 2M Karras": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
    "DPM++ SDE": {"sampler_name": "DPM++ SDE"},
    "DDIM": {"sampler_name": "DDIM"},
    "UniPC": {"sampler_name": "UniPC"},
}
LONG = "a very long prompt about " + " and ".join(["a red cat on a blue mat", "an old dog"] * 8)
VERY_LONG = f"{LONG}, {LONG}"
PROMPTS: dict[str, dict[str, Any]] = {
    "prompt over 75 tokens": {"prompt": LONG},
    "prompt over 150 tokens, also negative": {"prompt": VERY_LONG, "negative_prompt": LONG},
    "AND": {"prompt": "a cat AND a red car :0.7 AND a tree :0.4"},
    "prompt editing": {"prompt": "a photo of a [cat:red car:0.5]", "steps": 6},
    "alternating words": {"prompt": "a photo of a [cat|car]"},
    "emphasis": {"prompt": "a (photo:1.4) of a [cat]"},
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pad_cond_uncond": ({"pad_cond_uncond": True}, {"prompt": LONG}),
    "pad_cond_uncond_v0": ({"pad_cond_uncond_v0": True}, {"prompt": LONG}),
    "batch_cond_uncond off": ({"batch_cond_uncond": False}, {}),
    "skip_early_cond": ({"skip_early_cond": 0.5}, {"steps": 6}),
    "negative guidance minimum sigma": ({"s_min_uncond": 4.0}, {"steps": 6}),
    "clip skip 2": ({"CLIP_stop_at_last_layers": 2}, {}),
}
UPCAST = part("upcast_attn")
UNMOVED = ("batch_cond_uncond off", "alternating words")  # by little or by nothing
HIRES: dict[str, Any] = {
    "enable_hr": True,
    "hr_upscaler": "Latent",
    "hr_scale": 1.5,
    "denoising_strength": 0.7,
}


HIRES_PIXELS = HIRES | {"hr_upscaler": "Lanczos"}
ODD = {"width": 72, "height": 56}


# CFG scale along x and words of the prompt along y; the other arguments are those of the form.
PLOT = [
    6,
    "1,7",
    [],
    7,
    "cat,<lora:tiny_lora_b:0.8>",
    [],
    0,
    "",
    [],
    False,
    True,
    False,
    True,
    *[False] * 3,
    0,
    False,
]


def rows() -> tuple[Row, ...]:
    """All rows of this file."""
    sizes = [row(f"size {w}x{h}", picture(f"{w}x{h}", width=w, height=h)) for w, h in SIZES]
    batches = [row(name, picture(name, **fields)) for name, fields in BATCHES.items()]
    samplers = [row(f"sampler {name}", picture(name, **fields)) for name, fields in SAMPLERS.items()]
    prompts = [
        row(name, BASE, picture(name, moves="" if name in UNMOVED else "base", **given))
        for name, given in PROMPTS.items()
    ]
    options = [
        row(
            name,
            picture("without", **fields),
            Options(changes),
            picture(name, moves="" if name in UNMOVED else "without", **fields),
        )
        for name, (changes, fields) in OPTIONS.items()
    ]
    return (
        row("plain picture", BASE, AGAIN, picture("other seed", seed=2, moves="base")),
        *sizes,
        *batches,
        *samplers,
        *prompts,
        *options,
        row("cfg 1", BASE, picture("cfg 1", cfg_scale=1, moves="base"), AGAIN),
        row("shapes in turn", *(picture(f"turn {n}", **fields) for n, fields in enumerate(TURNS))),
        row("hires", BASE, picture("hires", **HIRES), AGAIN),
        row("hires, odd size", picture("hires", **HIRES | ODD)),
        row("hires, not latent", picture("hires", **HIRES_PIXELS), picture("odd", **HIRES_PIXELS | ODD)),
        row("img2img", picture("img2img", image=True), picture("img2img again", image=True, same="img2img")),
        row("img2img, odd size", picture("img2img", image=True, width=200, height=136)),
        row("img2img with mask", picture("masked", image=True, mask=True), BASE),
        row("upcast_attn", BASE, Options({"upcast_attn": True}), picture("upcast", speed=UPCAST)),
        row("script X/Y/Z plot", BASE, picture("plot", script_name="x/y/z plot", script_args=PLOT), AGAIN),
    )


TURNS: tuple[dict[str, Any], ...] = (
    {"width": 64, "height": 64},
    {"batch_size": 2},
    {"prompt": LONG},
    {"cfg_scale": 1},
    {"width": 200, "height": 136, "batch_size": 2},
    {"width": 64, "height": 64},
)
