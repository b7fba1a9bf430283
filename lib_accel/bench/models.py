"""Small models of random weights in the forms of SD1, SD2, SDXL and inpainting, and their pipelines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers

SIDE_PX = 128
TOKENS = 77
CONTEXT = 64  # width of the text encoder's output
_SEED = 20240102

_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": CONTEXT,
    "intermediate_size": 4 * CONTEXT,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "projection_dim": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_UNET: dict[str, Any] = {
    "sample_size": SIDE_PX // 8,
    "block_out_channels": (64, 128, 256, 256),
    "layers_per_block": 2,
    "cross_attention_dim": CONTEXT,
    "attention_head_dim": 8,
}
_VAE: dict[str, Any] = {
    "block_out_channels": (32, 64, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_STEPS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_SDXL_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")


@dataclass(frozen=True)
class Form:
    """What makes a family of models: settings of its UNet and the kind of its predictions."""

    unet: dict[str, Any]
    prediction: str = "epsilon"


FORMS = {
    "sd1": Form({}),
    "sd2": Form({"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True}, "v_prediction"),
    "sdxl": Form(
        {
            "block_out_channels": (64, 128, 256),
            "down_block_types": _SDXL_BLOCKS,
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 4),
            "attention_head_dim": (1, 2, 4),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 6 * 32 + CONTEXT,
        }
    ),
    "inpainting": Form({"in_channels": 9}),
}

# What a model is of and what is done with it, and the pipeline that does it.
_PIPELINES: dict[tuple[str, str], Any] = {
    ("sd1", "text"): diffusers.StableDiffusionPipeline,
    ("sd1", "image"): diffusers.StableDiffusionImg2ImgPipeline,
    ("sd1", "control"): diffusers.StableDiffusionControlNetPipeline,
    ("sd2", "text"): diffusers.StableDiffusionPipeline,
    ("sdxl", "text"): diffusers.StableDiffusionXLPipeline,
    ("inpainting", "inpaint"): diffusers.StableDiffusionInpaintPipeline,
}


def pipeline(form: str, *, task: str = "text", controls: int = 0) -> Any:
    """A float32 CPU pipeline of that form and task, with so many ControlNets; the same bits every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        parts = _parts(form)
        if controls:
            nets = [_controlnet(parts["unet"]) for _ in range(controls)]
            parts["controlnet"] = nets if controls > 1 else nets[0]
    if controls:
        task = "control"
    pipe = _PIPELINES[form, task](**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def twin(pipe: Any) -> Any:
    """A pipeline of the same bits that shares no module with `pipe`."""
    return copy.deepcopy(pipe)


def _parts(form: str) -> dict[str, Any]:
    config = transformers.CLIPTextConfig(**_TEXT)
    parts: dict[str, Any] = {
        "unet": _made(diffusers.UNet2DConditionModel, **(_UNET | FORMS[form].unet)),
        "vae": _made(diffusers.AutoencoderKL, **_VAE),
        "text_encoder": _made(transformers.CLIPTextModel, config),
        "tokenizer": None,
        "scheduler": _made(diffusers.DDIMScheduler, **_STEPS, prediction_type=FORMS[form].prediction),
    }
    if form == "sdxl":
        second = _made(transformers.CLIPTextModelWithProjection, config)
        return parts | {"text_encoder_2": second, "tokenizer_2": None}
    return parts | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _made(kind: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    part = kind(*args, **settings)
    return part.eval() if isinstance(part, torch.nn.Module) else part


def _controlnet(unet: Any) -> Any:
    net: Any = diffusers.ControlNetModel.from_unet(unet).eval()
    # A fresh ControlNet adds exactly nothing, so that a mistake in it would go unseen.
    for convolution in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(convolution.weight, std=0.3 / convolution.weight.shape[1] ** 0.5)
    return net
