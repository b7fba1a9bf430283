"""A small model that needs no download: a narrow SD1, with LoRAs, a ControlNet and a hint for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lib_accel.demo.architecture import NOISE
from lib_accel.demo.limits import check_device, check_size
from lib_accel.demo.loading import load_pipeline, quieted
from lib_accel.demo.seeded import SMOOTHER, seeded
from lib_accel.demo.tokenizer import load_tokenizer

# A trained model as diffusers' folder; where there is none, weights are drawn from a seed.
MODEL = Path(__file__).resolve().parent / "data" / "model"

_CONTEXT_WIDTH = 128
_UNET = {
    "sample_size": 16,
    "block_out_channels": (64, 128, 256, 256),  # with one to a group of a norm, the timestep is normed away
    "attention_head_dim": 8,  # that many heads, as in SD1: diffusers calls them so
    "cross_attention_dim": _CONTEXT_WIDTH,
}
_VAE = {
    "block_out_channels": (32, 64, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
}
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": _CONTEXT_WIDTH,
    "intermediate_size": 4 * _CONTEXT_WIDTH,
    "projection_dim": _CONTEXT_WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
# From weights that nobody trained, this keeps latents in bounds; with "epsilon" they grow fifteen times.
_PREDICTION = "v_prediction"

_SEEDS = {"unet": 1, "vae": 2, "text_encoder": 3, "controlnet": 4}
_FIRST_LORA_SEED = 100
_LORA_STRENGTH = 0.06  # a LoRA's change of a weight, as a share of a weight of usual size
_LORA_RANKS = (4, 6, 8)


def embedded_pipeline(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A StableDiffusionPipeline of the embedded model, without safety checker and progress bars.

    Raises DemoError for a device that is not there. Torch's random state stays as it is.
    """
    if MODEL.is_dir():
        return load_pipeline(MODEL, device, dtype)
    return seeded_pipeline(device, dtype)


def seeded_pipeline(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The embedded model with seeded weights: abstract pictures that heed a prompt."""
    place = check_device(device)
    parts = {
        "unet": _drawn("unet", lambda: UNet2DConditionModel(**_UNET)),
        "vae": _drawn("vae", lambda: AutoencoderKL(**_VAE), smooth=SMOOTHER),
        "text_encoder": _drawn("text_encoder", lambda: CLIPTextModel(CLIPTextConfig(**_TEXT))),
    }
    return quieted(
        StableDiffusionPipeline(
            **{name: _placed(model, place, dtype) for name, model in parts.items()},
            tokenizer=load_tokenizer(),
            scheduler=DDIMScheduler(**NOISE, prediction_type=_PREDICTION),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def _drawn(name: str, build: Callable[[], nn.Module], **settings: float) -> Any:
    with torch.random.fork_rng(devices=[]):  # the class draws its weights first
        model = build()
    return seeded(model, _SEEDS[name], **settings)


def _placed(model: nn.Module, place: torch.device, dtype: torch.dtype) -> nn.Module:
    # diffusers' own `to` warns of modules to be kept in float32 when there are none.
    return nn.Module.to(model, place, dtype)


def embedded_loras(count: int) -> list[dict[str, Tensor]]:
    """`count` LoRAs for the embedded model in kohya's spelling, for UNet and text encoder, each another seed.

    Float32 on the CPU; ranks 4, 6 and 8 in turn, alpha half the rank.
    """
    with torch.device("meta"):
        models = {"lora_unet": _unet_without_weights(), "lora_te": _text_encoder_without_weights()}
    layers = [pair for prefix, model in models.items() for pair in _layers(prefix, model)]
    return [
        _lora(layers, rank=_LORA_RANKS[number % len(_LORA_RANKS)], seed=_FIRST_LORA_SEED + number)
        for number in range(count)
    ]


def _unet_without_weights() -> Any:
    config = UNet2DConditionModel.load_config(MODEL / "unet") if MODEL.is_dir() else _UNET
    return UNet2DConditionModel.from_config(config)


def _text_encoder_without_weights() -> Any:
    if MODEL.is_dir():
        return CLIPTextModel(CLIPTextConfig.from_pretrained(MODEL / "text_encoder", local_files_only=True))
    return CLIPTextModel(CLIPTextConfig(**_TEXT))


def _layers(prefix: str, model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Kohya's name and the weight's shape of each layer that kohya's trainer adapts by default."""
    for path, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and (".attentions." in path or "layers." in path):
            # transformers 5 does without the wrapper that gave the names their "text_model".
            wrapped = f"text_model.{path}" if path.startswith("encoder.") else path
            yield f"{prefix}_{wrapped.replace('.', '_')}", tuple(layer.weight.shape)


def _lora(layers: list[tuple[str, tuple[int, ...]]], *, rank: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    alpha = rank / 2
    state: dict[str, Tensor] = {}
    for name, (size_out, size_in, *kernel) in layers:
        ones = (1,) * len(kernel)
        down = torch.randn(rank, size_in, *kernel, generator=generator) / size_in**0.5
        up = torch.randn(size_out, rank, *ones, generator=generator)
        state[f"{name}.lora_down.weight"] = down
        state[f"{name}.lora_up.weight"] = up * (_LORA_STRENGTH / rank**0.5 * (rank / alpha))
        state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def embedded_controlnet(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A ControlNetModel that fits the embedded model, with seeded weights. Raises DemoError for a device."""
    place = check_device(device)
    with torch.device("meta"):
        unet = _unet_without_weights()
    model = _drawn("controlnet", lambda: ControlNetModel.from_unet(unet, load_weights_from_unet=False))
    return _placed(model, place, dtype)


def embedded_hint(width: int, height: int) -> Image.Image:
    """White outlines on black, as an edge detector gives them, RGB, sizes in pixels.

    Raises DemoError for a size that no picture can have.
    """
    check_size(width, height)
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    line = max(1, min(width, height) // 64)
    draw.ellipse(_scaled((0.58, 0.1, 0.9, 0.42), width, height), outline="white", width=line)
    draw.rectangle(_scaled((0.12, 0.5, 0.55, 0.92), width, height), outline="white", width=line)
    draw.polygon(_scaled((0.06, 0.5, 0.335, 0.2, 0.61, 0.5), width, height), outline="white", width=line)
    draw.rectangle(_scaled((0.27, 0.66, 0.4, 0.92), width, height), outline="white", width=line)
    draw.line(_scaled((0.0, 0.92, 1.0, 0.92), width, height), fill="white", width=line)
    return picture


def _scaled(shares: tuple[float, ...], width: int, height: int) -> list[float]:
    return [share * (width - 1, height - 1)[number % 2] for number, share in enumerate(shares)]
