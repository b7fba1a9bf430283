"""The original Stable Diffusion's names for a model in diffusers' layout, and its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lib_accel.lora.original import original_names

UNET_HEAD = "model.diffusion_model."
VAE_HEAD = "first_stage_model."
TEXT_HEAD = "cond_stage_model.transformer.text_model."

# Norms carry no LoRA, so `original_names` does not know them.
_RESNET_NORMS = {"norm1": "in_layers.0", "norm2": "out_layers.0"}
_TOP_NORM = {"conv_norm_out": "out.0"}

_VAE_NAMES = (
    (r"^(en|de)coder\.mid_block\.resnets\.0\.", r"\1coder.mid.block_1."),
    (r"^(en|de)coder\.mid_block\.resnets\.1\.", r"\1coder.mid.block_2."),
    (r"^(en|de)coder\.mid_block\.attentions\.0\.", r"\1coder.mid.attn_1."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
    (r"^(en|de)coder\.(down|up)_blocks\.(\d+)\.resnets\.", r"\1coder.\2.\3.block."),
    (r"^(en|de)coder\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r"\1coder.\2.\3.\4sample."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def original_unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's tensors under their original names, without head."""
    paths = sorted({key.rpartition(".")[0] for key in state})
    names = {path: original for original, path in original_names(paths)} | _TOP_NORM
    renamed = {}
    for key, tensor in state.items():
        path, _, role = key.rpartition(".")
        original = names[path]
        if ".resnets." in path:
            block, _, layer = original.rpartition(".")
            original = f"{block}.{_RESNET_NORMS[layer]}" if layer in _RESNET_NORMS else original
        renamed[f"{original}.{role}"] = tensor
    return renamed


def original_vae(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """A VAE's tensors under their original names, without head; its attention's layers become convolutions.

    The original counts the decoder's levels from the finest of the `levels`.
    """
    renamed = {}
    for key, tensor in state.items():
        for pattern, name in _VAE_NAMES:
            key = re.sub(pattern, name, key)
        key = re.sub(r"(?<=^decoder\.up\.)\d+", lambda found: str(levels - 1 - int(found[0])), key)
        is_linear = ".attn_1." in key and tensor.ndim == 2
        renamed[key] = tensor[:, :, None, None] if is_linear else tensor
    return renamed


def original_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder's tensors, without head."""
    return {key.removeprefix("text_model."): tensor for key, tensor in state.items()}


def settings(unet: Mapping[str, Any], vae: Mapping[str, Any], clip: str) -> dict[str, Any]:
    """The webui's config, as plain values, for models with these diffusers configs.

    `clip` is where the text encoder's config and tokenizer are: a folder, or a name on the hub.
    """
    noise = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": vae["scaling_factor"],
        "use_ema": False,
    }
    parts = {
        "unet_config": _class("modules.diffusionmodules.openaimodel.UNetModel", _unet_settings(unet)),
        "first_stage_config": _class("models.autoencoder.AutoencoderKL", _vae_settings(vae)),
        "cond_stage_config": _class("modules.encoders.modules.FrozenCLIPEmbedder", {"version": clip}),
    }
    return {"model": {**_class("models.diffusion.ddpm.LatentDiffusion", noise | parts)}}


def _class(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"target": f"ldm.{name}", "params": dict(params)}


def _unet_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    widths = config["block_out_channels"]
    attends = [number for number, kind in enumerate(config["down_block_types"]) if "CrossAttn" in kind]
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "attention_resolutions": [2**number for number in attends],
        "num_res_blocks": config["layers_per_block"],
        "channel_mult": [width // widths[0] for width in widths],
        "num_heads": config["attention_head_dim"],
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": config["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }


def _vae_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    widths = config["block_out_channels"]
    return {
        "embed_dim": config["latent_channels"],
        "monitor": "val/rec_loss",
        "ddconfig": {
            "double_z": True,
            "z_channels": config["latent_channels"],
            "resolution": config["sample_size"],
            "in_channels": 3,
            "out_ch": 3,
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }
