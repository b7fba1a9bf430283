"""All groups: which webui is started how, and the rows it then gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..outcome import CLEAN, Speed, part
from ..picture import AGAIN, BASE, loras, picture, unit
from ..row import Group, Row, group, row
from ..steps import Ask, Code, Draw, StatusShape, Step
from . import (
    checkpoints,
    compiled,
    controls,
    cost,
    features,
    networks,
    others,
    product,
    shapes,
    text,
    trouble,
    tuned,
    vae,
)
from .networks import merged
from .server_code import COMPARE_WEIGHTS, KEEP_WEIGHTS

AUTH = "user:secret"
STATUS, ENABLE, DISABLE = "/accel/v1/status", "/accel/v1/enable", "/accel/v1/disable"


def everything(
    *networks_of_it: str, controlled: bool = True, hires: dict[str, Any] = shapes.HIRES
) -> tuple[Row, ...]:
    """A short look at everything, for checkpoints and flags beside the plain ones."""
    prompt = {"prompt": loras(*networks_of_it)}
    controls_too = (
        picture("ControlNet", units=(unit(),), moves="base"),
        picture("ControlNet and LoRA", units=(unit(),), moves="ControlNet", **prompt),
        picture("ControlNet in hires", units=(unit(),), **hires),
    )
    return (
        row(
            "plain picture",
            BASE,
            AGAIN,
            picture("batch 2", batch_size=2),
            picture("small", width=64, height=64),
        ),
        row("odd size", picture("72x56", width=72, height=56), picture("200x136", width=200, height=136)),
        row("long prompt", BASE, picture("long", prompt=shapes.LONG, moves="base")),
        row(
            "hires",
            picture("hires", **hires),
            picture("hires, LoRA", moves="hires", **hires | prompt),
        ),
        row("img2img", picture("img2img", image=True), picture("masked", image=True, mask=True)),
        row(
            "LoRA on and off",
            BASE,
            Code("weights before", KEEP_WEIGHTS),
            picture("LoRA", moves="base", **prompt),
            merged("weights with LoRA"),
            picture("LoRA, cfg 1", cfg_scale=1, **prompt),
            AGAIN,
            Code("weights as before", COMPARE_WEIGHTS, prints="True"),
        ),
        *([row("ControlNet", BASE, *controls_too, AGAIN)] if controlled else []),
        *trouble.off_rows()[: 1 if controlled else 0],
    )


def at_speed(rows: tuple[Row, ...], speed: Speed) -> tuple[Row, ...]:
    """The same rows, in which clean pictures without ControlNet run at another speed."""

    def changed(step: Step) -> Step:
        if isinstance(step, Draw) and step.picture.speed == CLEAN and not step.picture.units:
            return Draw(replace(step.picture, speed=speed))
        return step

    return tuple(replace(row, steps=tuple(map(changed, row.steps))) for row in rows)


HOOKED = part("forward hook")  # on the embedding, which a ControlNet's loop calls by itself
TINY = ("tiny_lora_b",)
SD1 = ("UNet", "VAE", "text encoder")
SDXL = ("UNet", "VAE", "text encoders")
GROUPS: tuple[Group, ...] = (
    group("shapes", (row("status", BASE, StatusShape(SD1)), *shapes.rows())),
    group("lora", networks.rows()),
    group("lora-exact", networks.exact_rows()),
    group("controlnet", controls.rows()),
    group("trouble", trouble.rows()),
    group("attention", features.attention_rows()),
    group("features", features.rows()),
    group("vae", vae.rows()),
    group("text", (*text.rows(text.TINY), *text.patch_rows())),
    group("checkpoints", checkpoints.rows(), models=("tiny", "xl", "v2")),
    group("compiled", compiled.rows()),
    group("product", product.rows(), stock=False, ui=True),
    group("tuned", tuned.rows(), ui=True),
    group("others", others.rows(), others=others.FOLDERS, models=("tiny", "wide")),
    group("steps", cost.rows(), flags=("--opt-sdp-attention",)),
    group(
        "steps-xl",
        cost.xl_rows(),
        checkpoint="tiny_xl",
        flags=("--opt-sdp-attention",),
        models=("tiny", "xl"),
    ),
    group("sdp", (*everything("tiny_lora_a", "tiny_lora_d:0.4"),), flags=("--opt-sdp-attention",)),
    group("channelslast", everything(*TINY), flags=("--opt-channelslast",)),
    group("medvram", everything(*TINY), flags=("--medvram",)),
    group("upcast", features.upcast_rows(), flags=("--upcast-sampling",)),
    group("lowvram", at_speed(everything(*TINY), HOOKED), flags=("--lowvram",)),
    group(
        "inpaint",
        everything("tiny_inpaint_lora_a", controlled=False, hires=shapes.HIRES_PIXELS),
        checkpoint="tiny_inpaint",
        models=("inpaint",),
    ),
    group("v2", everything("tiny_v2_lora_a", controlled=False), checkpoint="tiny_v2", models=("v2",)),
    group("v2-parts", text.rows(text.V2), checkpoint="tiny_v2", models=("v2",)),
    group("xl", everything("tiny_xl_lora_a", controlled=False), checkpoint="tiny_xl", models=("xl",)),
    group(
        "xl-parts",
        (
            row("status", BASE, StatusShape(SDXL)),
            *text.rows(text.XL),
            *vae.shape_rows(),
            vae.switch_row(),
            *features.mode_rows("tiny_xl_lora_a", moves=""),  # ToMe leaves alone what is not at full size
        ),
        checkpoint="tiny_xl",
        models=("tiny", "xl"),  # the VAEs come with tiny
    ),
    group("xl-controlnet", controls.xl_rows(), checkpoint="tiny_xl", models=("xl",)),
    group("reload", trouble.reload_rows(), ui=True),
    group(
        "full",
        (
            row(
                "full size",
                picture("base", steps=2),
                picture("LoRA", steps=2, moves="base", prompt=loras("full_lora_a", "full_lora_b:0.5")),
                merged(),
                picture("ControlNet", steps=2, moves="base", units=(unit("full_cn_a"),)),
                picture("base again", steps=2, same="base"),
            ),
        ),
        checkpoint="full",
        models=("full",),
    ),
    group(
        "auth",
        (
            row(
                "status", Ask(STATUS, (401,)), Ask(STATUS, auth=AUTH), Ask(STATUS, (401,), auth="user:wrong")
            ),
            row("disable", Ask(DISABLE, (401,), post=True), Ask(STATUS, auth=AUTH, holds={"enabled": True})),
            row("disable, with password", Ask(DISABLE, post=True, auth=AUTH, holds={"enabled": False})),
            row("enable", Ask(ENABLE, (401,), post=True), Ask(STATUS, auth=AUTH, holds={"enabled": False})),
            row("enable, with password", Ask(ENABLE, post=True, auth=AUTH, holds={"enabled": True})),
        ),
        flags=("--api-auth", AUTH),
        auth=AUTH,
        stock=False,
    ),
    group(
        "no-api",
        (
            row("status", Ask(STATUS, holds={"enabled": True})),
            row("disable", Ask(DISABLE, (404, 405), post=True), Ask(STATUS, holds={"enabled": True})),
            row("enable", Ask(ENABLE, (404, 405), post=True)),
        ),
        ui=True,
        api=False,
        stock=False,
    ),
)
