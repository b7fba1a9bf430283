"""Blocks that are little more than a convolution: in, out, down, up, zero convolutions, the hint."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.ops import conv2d, group_norm, linear
from lib_accel.blocks.pieces import (
    Norm,
    convolution_by,
    convolved,
    doubled,
    dtype_of,
    normed,
    pieces_for,
    pieces_for_norm,
)
from lib_accel.blocks.rules import Rules


class ConvWeights(NamedTuple):
    """Weights of one convolution."""

    weight: Tensor  # (out, channels, height, width)
    bias: Tensor | None


class OutWeights(NamedTuple):
    """Weights of the UNet's last norm and convolution."""

    norm: Tensor  # (channels,)
    norm_bias: Tensor
    conv: Tensor  # (out, channels, 3, 3)
    conv_bias: Tensor | None


class OutSpec(NamedTuple):
    """What of the UNet's last layers is not a tensor."""

    norm: GroupNormSpec
    conv: ConvSpec


class EmbeddingWeights(NamedTuple):
    """Weights of the two linear layers that embed a timestep or a vector."""

    hidden: Tensor  # (inner, channels)
    hidden_bias: Tensor | None
    out: Tensor  # (out, inner)
    out_bias: Tensor | None


def convolution(x: Tensor, weights: ConvWeights, spec: ConvSpec, rules: Rules) -> Tensor:
    """One convolution of (batch, channels, height, width): in, down, zero convolution, a link of the hint."""
    return conv2d(x, weights.weight, weights.bias, spec, rules)


def upsample(x: Tensor, weights: ConvWeights, spec: ConvSpec, rules: Rules) -> Tensor:
    """Each pixel twice in height and width, then a convolution."""
    return resize(x, None, weights, spec, rules)


def resize(
    x: Tensor, size: tuple[int, int] | None, weights: ConvWeights, spec: ConvSpec, rules: Rules
) -> Tensor:
    """The nearest pixels at (height, width), or at twice both if `size` is None, then a convolution."""
    doubles = size is None or tuple(size) == (2 * x.shape[2], 2 * x.shape[3])
    if doubles and (cut := pieces_for(4 * x.numel(), x, rules)) is not None:
        source = doubled(x, dtype_of(x, rules))
        return convolved(source, convolution_by(rules, weights.weight, weights.bias, spec), cut)
    if size is None:
        larger = F.interpolate(x, scale_factor=2.0, mode="nearest")
    else:
        larger = F.interpolate(x, size=size, mode="nearest")
    return conv2d(larger, weights.weight, weights.bias, spec, rules)


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`."""
    return F.silu(x)


def out_convolution(x: Tensor, weights: OutWeights, spec: OutSpec, rules: Rules) -> Tensor:
    """`conv(silu(norm(x)))`: the UNet's last layers, to (batch, out, height, width)."""
    w = weights
    if (cut := pieces_for_norm(x, x.shape[1], rules)) is not None:
        use = GroupNormUse(spec.norm, silu=True, dtype=rules.norm, out_dtype=rules.matmul)
        source = normed(x, Norm(w.norm, w.norm_bias, use), cut)
        return convolved(source, convolution_by(rules, w.conv, w.conv_bias, spec.conv), cut)
    h = group_norm(x, w.norm, w.norm_bias, spec.norm, rules, silu=True, to=rules.matmul)
    return conv2d(h, w.conv, w.conv_bias, spec.conv, rules)


def embed(x: Tensor, weights: EmbeddingWeights, spec: None, rules: Rules) -> Tensor:
    """`out(silu(hidden(x)))` of a (batch, channels) timestep embedding or vector; there is no spec."""
    hidden = F.silu(linear(x, weights.hidden, weights.hidden_bias, rules))
    return linear(hidden, weights.out, weights.out_bias, rules)
