"""The few operations that all blocks are made of, each under the dtype rules of the caller.

Shapes: images are (batch, channels, height, width), tokens (batch, tokens, channels). Weights are plain
tensors as torch.nn holds them. No function changes its arguments or returns one of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec, convolve
from lib_accel.blocks.rules import Rules


class GroupNormSpec(NamedTuple):
    """What of a group norm is not a tensor."""

    groups: int
    eps: float
    upcast: bool  # GroupNorm32: computes in float32 whatever comes, returns the input's dtype


def cast(dtype: torch.dtype | None, *tensors: Any) -> Any:
    """The tensors (or None) in `dtype`, or as they are if that is None."""
    if dtype is None:
        return tensors
    return tuple([t if t is None or t.dtype is dtype else t.to(dtype) for t in tensors])


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, rules: Rules) -> Tensor:
    """Convolution of an image; weight (out, in / groups, height, width)."""
    x, weight, bias = cast(rules.matmul, x, weight, bias)
    return convolve(x, weight, bias, spec)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, rules: Rules) -> Tensor:
    """`x @ weight.T + bias` over the last dimension; weight (out, in)."""
    x, weight, bias = cast(rules.matmul, x, weight, bias)
    return F.linear(x, weight, bias)


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, spec: GroupNormSpec, rules: Rules
) -> Tensor:
    """Group norm over the channels of an image."""
    source = x.float() if spec.upcast else x
    source, weight, bias = cast(rules.norm, source, weight, bias)
    normed = F.group_norm(source, spec.groups, weight, bias, spec.eps)
    return normed.to(x.dtype) if spec.upcast else normed


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, rules: Rules) -> Tensor:
    """Layer norm over the last dimension."""
    channels = x.shape[-1:]
    x, weight, bias = cast(rules.norm, x, weight, bias)
    return F.layer_norm(x, channels, weight, bias, eps)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, rules: Rules) -> Tensor:
    """Softmax attention of (batch, tokens, heads * size) tensors, scaled by 1 / sqrt(size)."""
    query, key, value = cast(rules.matmul, query, key, value)
    batch, tokens, channels = query.shape
    size = channels // heads
    # A list, not a generator: torch 2.1 cannot trace that.
    query, key, value = [t.view(len(t), -1, heads, size).transpose(1, 2) for t in (query, key, value)]
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(batch, tokens, channels)
