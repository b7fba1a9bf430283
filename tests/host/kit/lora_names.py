"""Which layers of a checkpoint a LoRA file changes, and how it calls them.

Names follow the kohya convention, which the builtin Lora extension reads: diffusers names for the UNet of
SD1 and SD2, the checkpoint's own for SDXL, and Hugging Face names for every text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

UNET = "model.diffusion_model."
CLIP_LAYERS = {
    "cond_stage_model.transformer.text_model.encoder.layers.": "lora_te",
    "conditioner.embedders.0.transformer.text_model.encoder.layers.": "lora_te1",
}
OPEN_CLIP_LAYERS = {
    "cond_stage_model.model.transformer.resblocks.": "lora_te",
    "conditioner.embedders.1.model.transformer.resblocks.": "lora_te2",
}
OPEN_CLIP_PARTS = {
    "attn.out_proj": "self_attn_out_proj",
    "mlp.c_fc": "mlp_fc1",
    "mlp.c_proj": "mlp_fc2",
}
RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
ATTENTION_PARTS = ("norm.", "proj_", "transformer_blocks.")
METADATA = {
    "sd1": {"ss_base_model_version": "sd_v1"},
    "sd2": {"ss_base_model_version": "sd_v2_v", "ss_v2": "True"},
    "sdxl": {"ss_base_model_version": "sdxl_base_v1-0"},
}


@dataclass(frozen=True)
class Layer:
    """A norm, linear or convolution layer of the checkpoint under its LoRA name."""

    name: str
    weight: Tensor
    bias: Tensor | None


def family(state_dict: dict[str, Tensor]) -> str:
    """Model family of a checkpoint, a key of METADATA."""
    if any(key.startswith("conditioner.") for key in state_dict):
        return "sdxl"
    return "sd2" if any(key.startswith(tuple(OPEN_CLIP_LAYERS)) for key in state_dict) else "sd1"


def metadata(state_dict: dict[str, Tensor]) -> dict[str, str]:
    """Metadata that tells the webui for which family a LoRA is."""
    return {"ss_network_module": "networks.lora"} | METADATA[family(state_dict)]


def text_name(key: str) -> str | None:
    """LoRA name of text encoder layer ``key``, or None if it is none."""
    for prefix, short in (CLIP_LAYERS | OPEN_CLIP_LAYERS).items():
        if key.startswith(prefix):
            number, _, part = key.removeprefix(prefix).partition(".")
            part = OPEN_CLIP_PARTS.get(part, part).replace(".", "_")
            return f"{short}_text_model_encoder_layers_{number}_{part}"
    return None


def unet_name(key: str, resnets: bool, xl: bool) -> str | None:
    """LoRA name of UNet layer ``key``, or None where no LoRA is written."""
    place = key.removeprefix(UNET)
    if found := re.fullmatch(r"middle_block\.1\.(.+)", place):
        side, number, index, part = "mid", "0", "1", found[1]
    elif found := re.fullmatch(r"(input|output)_blocks\.(\d+)\.([01])\.(.+)", place):
        side, number, index, part = found.groups()
    else:
        return None
    if not (resnets and part in RESNET_PARTS if index == "0" else f"{part}.".startswith(ATTENTION_PARTS)):
        return None
    if xl:
        return "lora_unet_" + place.replace(".", "_")
    part = RESNET_PARTS.get(part, part).replace(".", "_")
    if side == "mid":
        return f"lora_unet_mid_block_attentions_0_{part}"
    level, position = divmod(int(number) - (side == "input"), 3)
    group = "resnets" if index == "0" else "attentions"
    return f"lora_unet_{'down' if side == 'input' else 'up'}_blocks_{level}_{group}_{position}_{part}"


def layers(state_dict: dict[str, Tensor], resnets: bool) -> Iterator[Layer]:
    """Layers that may get an update: attention and text encoder always, residual blocks if ``resnets``.

    The query, key and value of an OpenCLIP layer share one matrix; a LoRA file has each on its own.
    """
    xl = family(state_dict) == "sdxl"
    for key, value in state_dict.items():
        weight = value.float()
        if key.endswith(".attn.in_proj_weight"):
            name = text_name(key.removesuffix(".attn.in_proj_weight") + ".self_attn")
            for letter, part in zip("qkv", weight.chunk(3), strict=True):
                yield Layer(f"{name}_{letter}_proj", part, None)
        elif key.endswith(".weight"):
            stem = key.removesuffix(".weight")
            if name := text_name(stem) or unet_name(stem, resnets, xl):
                bias = state_dict.get(stem + ".bias")
                yield Layer(name, weight, None if bias is None else bias.float())
