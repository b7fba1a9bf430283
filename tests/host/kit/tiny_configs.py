"""Tiny versions of the model configs that the webui itself has, one function per family.

The text encoders are a CLIP from a folder of ``make_clip.py`` and a small one that open_clip has a name for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

FULL_CONFIG = "configs/v1-inference.yaml"
SOURCES = {
    "tiny": FULL_CONFIG,
    "wide": FULL_CONFIG,
    "inpaint": "configs/v1-inpainting-inference.yaml",
    "v2": "repositories/stable-diffusion-stability-ai/configs/stable-diffusion/v2-inference-v.yaml",
    "xl": "repositories/generative-models/configs/inference/sd_xl_base.yaml",
}
VAE_WIDTH = 32
CLIP_WIDTH = 768
OPEN_CLIP = {"arch": "ViT-S-32-alt", "version": None}  # no version: random weights, no download
OPEN_CLIP_WIDTH = 256
SIZE_EMBEDDINGS = 6 * 256  # SDXL's height and width of three kinds
HEAD_CHANNELS = 64


def shrink_sd1(params: DictConfig, width: int, clip: Path) -> None:
    """Narrow UNet and the small CLIP; also for inpainting, whose nine input channels stay."""
    params.use_ema = False  # the inpainting config leaves it out, and then the weights are kept twice
    params.unet_config.params.model_channels = width
    params.cond_stage_config.params = {"version": str(clip)}


def shrink_sd1_but_the_middle(params: DictConfig, width: int, clip: Path) -> None:
    """The same, but as wide as SD1 in its two inner levels if the width is 64: some extensions go by that."""
    shrink_sd1(params, width, clip)
    params.unet_config.params.channel_mult = [1, 2, 5, 5]


def shrink_sd2(params: DictConfig, width: int, _clip: Path) -> None:
    """Narrow UNet and the small OpenCLIP; head size, linear projections and v-prediction stay."""
    params.unet_config.params.update(model_channels=width, context_dim=OPEN_CLIP_WIDTH)
    params.cond_stage_config.params.update(OPEN_CLIP)


def shrink_sdxl(params: DictConfig, width: int, clip: Path) -> None:
    """Narrow and shallow UNet, whose contexts are as wide as the two small text encoders together."""
    params.network_config.params.update(
        model_channels=width,
        transformer_depth=[1, 2, 3],  # the first is unused, as in SDXL
        context_dim=CLIP_WIDTH + OPEN_CLIP_WIDTH,
        adm_in_channels=OPEN_CLIP_WIDTH + SIZE_EMBEDDINGS,
    )
    first, second = params.conditioner_config.params.emb_models[:2]
    first.params.update(version=str(clip), layer_idx=1)  # the last but one of its two layers, as in SDXL
    second.params.update(OPEN_CLIP)
    params.first_stage_config.params.ddconfig.attn_type = "vanilla"


SHRINKERS: dict[str, Callable[[DictConfig, int, Path], None]] = {
    "tiny": shrink_sd1,
    "wide": shrink_sd1_but_the_middle,
    "inpaint": shrink_sd1,
    "v2": shrink_sd2,
    "xl": shrink_sdxl,
}


def width_step(target: str) -> int:
    """The width of this target must be a multiple of this: group norms, or heads of a fixed size."""
    return HEAD_CHANNELS if target in ("v2", "xl") else 32


def tiny_config(webui: Path, target: str, width: int, clip: Path) -> DictConfig:
    """Config of a tiny model; ``width`` is that of its UNet, ``clip`` the folder of its CLIP."""
    config = OmegaConf.load(webui / SOURCES[target])
    SHRINKERS[target](config.model.params, width, clip)
    config.model.params.first_stage_config.params.ddconfig.ch = VAE_WIDTH
    return config
