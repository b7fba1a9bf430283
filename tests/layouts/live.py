"""Small live modules of `ldm`, and our readers of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, Upsample
from ldm.modules.diffusionmodules.util import GroupNorm32
from torch import nn

from lib_accel.layouts import compvis
from lib_accel.layouts.ldm import FAMILY
from lib_accel.layouts.reading import Reading

CHANNELS = 32


def nobody(method: Callable[..., Any]) -> bool:
    """Trusts no replaced method."""
    return False


def res(out: int = CHANNELS, dropout: float = 0.0, **options: Any) -> Any:
    return ResBlock(CHANNELS, 8, dropout, out_channels=out, **options)


def transformer(**options: Any) -> Any:
    return SpatialTransformer(CHANNELS, 2, CHANNELS // 2, context_dim=8, use_checkpoint=False, **options)


def block(**options: Any) -> Any:
    return BasicTransformerBlock(CHANNELS, 2, CHANNELS // 2, context_dim=8, checkpoint=False, **options)


def downsample(**options: Any) -> Any:
    return Downsample(CHANNELS, **({"use_conv": True} | options))


def upsample(**options: Any) -> Any:
    return Upsample(CHANNELS, **({"use_conv": True} | options))


def embedding() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))


def out() -> nn.Sequential:
    return nn.Sequential(GroupNorm32(32, CHANNELS), nn.SiLU(), nn.Conv2d(CHANNELS, 4, 3, padding=1))


def read(kind: str, module: Any, trust: Callable[..., bool] = nobody) -> Reading:
    """What the reader of this kind finds in the module."""
    return READERS[kind](module, trust)


READERS: dict[str, Callable[[Any, Callable[..., bool]], Reading]] = {
    "res": lambda m, trust: compvis.read_res_block(m, FAMILY, trust),
    "frame": lambda m, trust: compvis.read_frame(m, FAMILY, trust),
    "self-attention": lambda m, trust: compvis.read_attention(m.norm1, m.attn1, FAMILY, trust),
    "cross-attention": lambda m, trust: compvis.read_attention(m.norm2, m.attn2, FAMILY, trust),
    "feed-forward": lambda m, trust: compvis.read_feed_forward(m.norm3, m.ff, FAMILY, trust),
    "downsample": lambda m, trust: compvis.read_downsample(m, FAMILY, trust),
    "upsample": lambda m, trust: compvis.read_upsample(m, FAMILY, trust),
    "convolution": lambda m, trust: compvis.read_convolution(m, FAMILY, trust),
    "silu": lambda m, trust: compvis.read_silu(m, FAMILY, trust),
    "embedding": lambda m, trust: compvis.read_embedding(m, FAMILY, trust),
    "out": lambda m, trust: compvis.read_out(m, FAMILY, trust),
}
BUILDERS: dict[str, Callable[[], Any]] = {
    "res": res,
    "frame": transformer,
    "self-attention": block,
    "cross-attention": block,
    "feed-forward": block,
    "downsample": downsample,
    "upsample": upsample,
    "convolution": lambda: nn.Conv2d(4, 8, 3),
    "silu": nn.SiLU,
    "embedding": embedding,
    "out": out,
}
