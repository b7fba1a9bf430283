"""Other people's extensions, loaded all together; their sources are no part of this repository."""

from __future__ import annotations

from typing import Any

from ..outcome import OFF, host, part
from ..picture import AGAIN, BASE, Picture, loras, picture, unit
from ..row import Row, row
from ..steps import Switch
from .checkpoints import use
from .features import BIG
from .networks import FUNCTIONAL, around
from .shapes import HIRES, ODD

# Folders below that of --others.
FREEU = "sd-webui-freeu"
BLOCK_WEIGHT = "sd-webui-lora-block-weight"
REGIONS = "sd-webui-regional-prompter"
TILES = "multidiffusion-upscaler-for-automatic1111"
KOHYA = "sd-webui-kohya-hiresfix"
SAG = "sd_webui_SAG"
FOLDERS = (FREEU, BLOCK_WEIGHT, REGIONS, TILES, KOHYA, SAG)

LORA = {"prompt": loras("tiny_lora_b")}
UNIT = {"units": (unit(),)}
LARGE = BIG | {"width": 320}

# Arguments of their forms, the rest of which keeps its defaults; the title of each is how the API knows it.
SELF_ATTENTION = {"self attention guidance": [True, 0.75, 1.0]}
KOHYA_TWICE = {"kohya hires.fix": [True, False, 3, 4, 0.35, 0.6, "bicubic", 0.5, 2.0, True, False]}
KOHYA_EARLY = {"kohya hires.fix": [True, True, 2, 3, 0.3, 0.5, "bilinear", 0.5, 2.0, False, True]}
TILED_VAE = {"tiled vae": [True, 128, 8, True, False, False, False]}  # the same picture, in tiles
TILED_VAE_FAST = {"tiled vae": [True, 128, 8, True, True, True, True]}


def freeu(version: str, **stage: float) -> dict[str, list[Any]]:
    """FreeU for the levels of SD1's three widths, of which the checkpoint has the smallest."""
    scales = {"backbone_factor": 1.4, "skip_factor": 0.3} | stage
    return {"freeu": [{"version": version, "stage_infos": [scales] * 3}]}


def regions(mode: str, options: str = "") -> dict[str, list[Any]]:
    """Two columns, one for each part of the prompt."""
    parts = ["Matrix", "Columns", "Mask", "Prompt", "1,1", "0.2"]
    return {"regional prompter": [True, False, *parts, False, False, False, mode, options]}


def tiled(method: str) -> dict[str, list[Any]]:
    """Latents in tiles of 16 by 16."""
    return {"tiled diffusion": [True, method, False, True, 256, 256, 16, 16, 8, 4]}


def rows() -> tuple[Row, ...]:
    """All rows of this file."""
    return (
        row("idle", BASE, picture("LoRA", moves="base", **LORA), picture("ControlNet", **UNIT), AGAIN),
        _freeu_row(),
        *_block_weight_rows(),
        *_region_rows(),
        *_tile_rows(),
        _kohya_row(),
        _self_attention_row(),
        _together_row(),
    )


def _freeu_row() -> Row:
    return row(
        FREEU,
        use("tiny_wide.safetensors"),
        BASE,
        picture("version 2", scripts=freeu("2"), moves="base"),
        picture("version 1", scripts=freeu("1"), moves="version 2"),
        picture("high frequencies", scripts=freeu("2", skip_high_end_factor=0.7), moves="version 2"),
        picture("odd size", scripts=freeu("2"), **ODD),
        picture("hires", scripts=freeu("2"), **HIRES),
        picture("batch 2", scripts=freeu("2"), batch_size=2),
        AGAIN,
    )


def _block_weight_rows() -> tuple[Row, ...]:
    def weighted(
        label: str, how: str, name: str = "tiny_lora_b", moves: str = "LoRA", **fields: Any
    ) -> Picture:
        return picture(label, prompt=loras(f"{name}:0.8:{how}"), moves=moves, **fields)

    back = picture("LoRA again", same="LoRA", **LORA)
    return (
        around(
            BLOCK_WEIGHT,
            picture("LoRA", moves="base", **LORA),
            weighted("output blocks", "lbw=OUTD"),
            weighted("output blocks again", "lbw=OUTD", moves="", same="output blocks"),
            weighted("input blocks", "lbw=INS", moves="output blocks"),
            weighted("each block", "lbw=1,0.5,0,1,2,0.3,1,-1,0.5,1,0,1,2,1,0.1,1,0.7", moves="input blocks"),
            weighted("batch 2", "lbw=OUTD", moves="", batch_size=2),
            weighted("ControlNet", "lbw=OUTD", moves="", **UNIT),
            weighted("hires", "lbw=OUTD", moves="", **HIRES),
            back,
        ),
        around(
            f"{BLOCK_WEIGHT}, other kinds",
            picture("LoRA", moves="base", **LORA),
            weighted("LoHa", "lbw=OUTD", "tiny_loha"),
            weighted("LoKr", "lbw=INS", "tiny_lokr"),
            weighted("LoHa again", "lbw=OUTD", "tiny_loha", moves="LoKr", same="LoHa"),
            back,
        ),
        around(
            f"{BLOCK_WEIGHT}, steps",
            picture("LoRA", moves="base", **LORA),
            weighted("from step 2", "start=2"),
            weighted("to step 2", "stop=2"),
            weighted("to step 2 again", "stop=2", moves="from step 2", same="to step 2"),
            weighted("both", "step=2-4:lbw=OUTD", moves="to step 2", steps=6),
            back,
        ),
    )


def _region_rows() -> tuple[Row, ...]:
    words = "a red cat BREAK a blue car"
    named = "a red cat <lora:tiny_lora_b:0.8> BREAK a blue car <lora:tiny_lora_a:0.8>"
    patched, linear = part("attn2.*forward of its own"), part(r"Linear\.forward was replaced")
    attention = {"scripts": regions("Attention"), "speed": patched}
    functional = {"scripts": regions("Latent"), "speed": host(FUNCTIONAL)}
    slowly = {"scripts": regions("Latent", "Use LoHa or other"), "speed": linear}
    return (
        around(
            REGIONS,
            picture("one prompt", prompt=words, moves="base"),
            picture("two regions", prompt=words, moves="one prompt", **attention),
            picture("LoRAs", prompt=named, moves="two regions", **attention),
            picture("batch 2", prompt=words, batch_size=2, **attention),
            picture("ControlNet", prompt=words, **attention | UNIT),
            picture("hires", prompt=words, **attention | HIRES),
            picture("one prompt again", prompt=words, same="one prompt"),
        ),
        around(
            f"{REGIONS}, latents",
            picture("one prompt", prompt=words, moves="base"),
            picture("two regions", prompt=words, moves="one prompt", **functional),
            picture("LoRAs", prompt=named, moves="two regions", **functional),
            picture("LoRAs, merged", prompt=named, moves="two regions", **slowly),
            picture("LoRAs, merged, ControlNet", prompt=named, **slowly | UNIT),
            picture("one prompt again", prompt=words, same="one prompt"),
            picture("LoRA", moves="base", **LORA),
        ),
    )


def _tile_rows() -> tuple[Row, ...]:
    methods = ("MultiDiffusion", "Mixture of Diffusers")
    return (
        row(
            f"{TILES}, Tiled VAE",
            picture("base", **BIG),
            picture("tiled", scripts=TILED_VAE, **BIG),
            picture("fast", scripts=TILED_VAE_FAST, moves="base", **BIG),
            picture("LoRA", scripts=TILED_VAE_FAST, moves="fast", **BIG | LORA),
            picture("img2img", scripts=TILED_VAE_FAST, image=True, **BIG),
            picture("too small to tile", scripts=TILED_VAE, runs=("decoder",)),
            picture("base again", same="base", runs=("decoder",), **BIG),
        ),
        *(
            row(
                f"{TILES}, {method}",
                picture("base", **LARGE),
                picture("tiled", scripts=tiled(method), moves="base", **LARGE),
                picture("LoRA", scripts=tiled(method), moves="tiled", **LARGE | LORA),
                picture("ControlNet", scripts=tiled(method), moves="tiled", **LARGE | UNIT),
                picture("with Tiled VAE", scripts=tiled(method) | TILED_VAE, **LARGE),
                picture("base again", same="base", **LARGE),
            )
            for method in methods
        ),
    )


def _kohya_row() -> Row:
    return row(
        KOHYA,
        picture("base", steps=6),
        picture("both depths", scripts=KOHYA_TWICE, moves="base", steps=6),
        picture("early", scripts=KOHYA_EARLY, moves="both depths", steps=6),
        picture("LoRA", scripts=KOHYA_TWICE, moves="both depths", steps=6, **LORA),
        picture("ControlNet", scripts=KOHYA_TWICE, moves="both depths", steps=6, **UNIT),
        picture("odd size", scripts=KOHYA_TWICE, steps=6, width=200, height=136),
        picture("hires", scripts=KOHYA_TWICE, **HIRES),
        picture("base again", same="base", steps=6),
    )


def _self_attention_row() -> Row:
    patched = part("attn1.*forward of its own")
    return row(
        SAG,
        BASE,
        picture("guided", scripts=SELF_ATTENTION, speed=patched, moves="base"),
        picture("LoRA", scripts=SELF_ATTENTION, speed=patched, moves="guided", **LORA),
        picture("ControlNet", scripts=SELF_ATTENTION, speed=patched, moves="guided", **UNIT),
        picture("other size", scripts=SELF_ATTENTION, speed=patched, width=192),
        AGAIN,
    )


def _together_row() -> Row:
    several = regions("Attention") | TILED_VAE | SELF_ATTENTION
    prompt = {"prompt": "a red cat BREAK a blue car <lora:tiny_lora_b:0.8:lbw=OUTD>"}
    patched = part("forward of its own")
    return row(
        "several at once",
        picture("base", **BIG),
        picture("several", scripts=several, speed=patched, moves="base", **BIG | prompt),
        picture("ControlNet", scripts=several, speed=patched, moves="several", **BIG | prompt | UNIT),
        picture("off", scripts=several, speed=OFF, accel=False, **BIG | prompt),
        picture("several again", scripts=several, speed=patched, same="several", **BIG | prompt),
        Switch(on=False),
        picture("base, off", speed=OFF, **BIG),
        Switch(on=True),
        picture("LoRA", moves="base", **BIG | LORA),  # or the webui keeps the conditioning that it made
        picture("base again", same="base", **BIG),
    )
