"""Calls of every operator that blocks make, in many forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.layer_norm import LayerNormUse
from lib_accel.blocks.operators.operator import Arguments

Draw = Callable[..., Tensor]  # of a shape

_NORM = GroupNormSpec(4, 1e-5, upcast=False)
_CONV = ConvSpec(padding=(1, 1))


def drawing(dtype: torch.dtype, layout: torch.memory_format) -> Draw:
    """Random numbers; images lie in memory as told."""
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=source).to(dtype)
        return values.contiguous(memory_format=layout) if len(shape) == 4 else values

    return draw


def _convolution(draw: Draw, batch: int, high: int, wide: int) -> tuple[Tensor, ...]:
    return draw(batch, 8, high, wide), draw(16, 8, 3, 3), draw(16)


# Of a batch, a height and a width; tokens are as many as the positions of an image.
CALLS: Mapping[str, Callable[[Draw, int, int, int], Arguments]] = {
    "attention": lambda draw, batch, high, wide: (
        draw(batch, high * wide, 16),
        draw(batch, 7, 16),
        draw(batch, 7, 16),
        2,
        None,
    ),
    "convolution, norm": lambda draw, batch, high, wide: (
        *_convolution(draw, batch, high, wide),
        draw(batch, 16),
        draw(16),
        draw(16),
        _CONV,
        GroupNormUse(_NORM, silu=True, dtype=None, out_dtype=torch.float32),
        None,
    ),
    "convolution, residual": lambda draw, batch, high, wide: (
        *_convolution(draw, batch, high, wide),
        draw(batch, 16, high, wide),
        _CONV,
        None,
    ),
    "gated linear": lambda draw, batch, high, wide: (
        draw(batch, high * wide, 8),
        draw(32, 8),
        draw(32),
        torch.float32,
    ),
    "group norm": lambda draw, batch, high, wide: (
        draw(batch, 8, high, wide),
        draw(8),
        None,
        GroupNormUse(_NORM, silu=False, dtype=None, out_dtype=None),
    ),
    "join, group norm": lambda draw, batch, high, wide: (
        draw(batch, 8, high, wide),
        draw(batch, 12, high, wide),
        draw(20),
        draw(20),
        GroupNormUse(_NORM, silu=True, dtype=None, out_dtype=torch.float32),
    ),
    "layer norm": lambda draw, batch, high, wide: (
        draw(batch, high * wide, 8),
        draw(8),
        draw(8),
        LayerNormUse(1e-5, None, torch.bfloat16),
    ),
    "linear, residual": lambda draw, batch, high, wide: (
        draw(batch, high * wide, 8),
        draw(16, 8),
        None,
        draw(batch, high * wide, 16),
        None,
    ),
}
