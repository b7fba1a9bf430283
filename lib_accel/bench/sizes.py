"""UNets with the layers of real models, of which only those that a LoRA changes hold numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from lib_accel.bench.models import pipeline

_SEED = 11


@dataclass(frozen=True)
class Size:
    """A UNet's settings, and what its weights are stored in."""

    form: str  # a key of models.FORMS, whose pipeline the UNet is put into
    dtype: torch.dtype  # float32 where it fits into memory twice, since CPUs compute in it
    unet: dict[str, Any] | None = field(default=None, hash=False)  # None: the form's small one as it is


_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

SIZES: dict[str, Size] = {
    "tiny": Size("sd1", torch.float32),
    "sd15": Size("sd1", torch.float32, {"sample_size": 64, "cross_attention_dim": 768}),
    "sdxl": Size("sdxl", torch.bfloat16, _SDXL),
}


def pipeline_of(size: Size) -> Any:
    """A pipeline with that UNet, and small models for the rest; the same bits every time."""
    pipe = pipeline(size.form)
    if size.unet is not None:
        pipe.register_modules(unet=_unet(size))
    return pipe


def changed_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """The layers that kohya's LoRA has by default, by path: all that is linear or 1x1 in the transformers."""
    return {
        path: module
        for path, module in unet.named_modules()
        if "attentions." in path and isinstance(module, (nn.Linear, nn.Conv2d))
    }


def weights(unet: nn.Module) -> dict[str, Tensor]:
    """The weights of those layers by their paths, without their gradients' machinery."""
    found: dict[str, Tensor] = {}
    for path, module in changed_layers(unet).items():
        assert isinstance(module.weight, Tensor)
        found[path] = module.weight.detach()
    return found


def _unet(size: Size) -> Any:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**(size.unet or {})).to(size.dtype).eval()
    held = {id(module.weight) for module in changed_layers(unet).values()}
    source = torch.Generator().manual_seed(_SEED)
    pool = torch.randn(1 << 20, generator=source) * 0.03
    for module in unet.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                filled = _filled(value, pool) if id(value) in held else _bare(value)
                module._parameters[name] = nn.Parameter(filled, requires_grad=False)
    return unet


def _filled(shape_of: Tensor, pool: Tensor) -> Tensor:
    """Numbers of that shape and dtype; to draw them all anew would take longer than to measure."""
    weight = torch.empty(shape_of.shape, dtype=shape_of.dtype)
    flat = weight.view(-1)
    for begin in range(0, flat.numel(), pool.numel()):
        part = flat[begin : begin + pool.numel()]
        part.copy_(pool[: part.numel()])
    return weight


def _bare(shape_of: Tensor) -> Tensor:
    """One zero that looks like a parameter of that shape: nothing here computes with it."""
    return torch.zeros(1, dtype=shape_of.dtype).expand(shape_of.shape)


@contextlib.contextmanager
def built(name: str) -> Iterator[Any]:
    """The pipeline of a size for the `with` block, and its memory free after it."""
    pipe = pipeline_of(SIZES[name])
    try:
        yield pipe
    finally:
        pipe.register_modules(unet=None)
