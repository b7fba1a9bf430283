"""What only a VAE's image has: attention between all its positions, and shrinking by half."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.ops import (
    attention,
    conv2d,
    group_norm,
    has_channels_last,
    image_of,
    linear,
    linear_add,
    tokens_of,
)
from lib_accel.blocks.pieces import convolution_by, convolved, dtype_of, padded, pieces_for
from lib_accel.blocks.rules import Rules
from lib_accel.blocks.sample import ConvWeights


class ImageAttentionWeights(NamedTuple):
    """Weights of group norm and attention; a 1x1 convolution is read as the linear layer that it is."""

    norm: Tensor  # (channels,)
    norm_bias: Tensor
    query: Tensor  # (channels, channels) or (channels, channels, 1, 1), as are the following
    query_bias: Tensor | None
    key: Tensor
    key_bias: Tensor | None
    value: Tensor
    value_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None


class ImageAttentionSpec(NamedTuple):
    """What of an image attention is not a tensor."""

    norm: GroupNormSpec
    heads: int = 1


def image_attention(
    x: Tensor, weights: ImageAttentionWeights, spec: ImageAttentionSpec, rules: Rules
) -> Tensor:
    """`x + out(attention(norm(x)))` between the positions of an image (batch, channels, height, width)."""
    w = weights
    normed = group_norm(x, w.norm, w.norm_bias, spec.norm, rules, to=rules.matmul)
    tokens = tokens_of(normed).contiguous()  # else torch adds each bias in a step of its own
    del normed
    query = linear(tokens, w.query.flatten(1), w.query_bias, rules)
    key = linear(tokens, w.key.flatten(1), w.key_bias, rules)
    value = linear(tokens, w.value.flatten(1), w.value_bias, rules)
    del tokens
    mixed, out = attention(query, key, value, spec.heads, rules), w.out.flatten(1)
    del query, key, value
    if has_channels_last(x):
        return image_of(linear_add(mixed, out, w.out_bias, tokens_of(x), rules), x)
    # The image comes first: the result is laid out in memory as it is, not as the tokens are.
    return x + image_of(linear(mixed, out, w.out_bias, rules), x)


def shrink(x: Tensor, weights: ConvWeights, spec: ConvSpec, rules: Rules) -> Tensor:
    """A strided convolution of an image that is padded by one row below and one column to the right."""
    if (cut := pieces_for(x.numel(), x, rules)) is not None:
        source = padded(x, dtype_of(x, rules))
        return convolved(source, convolution_by(rules, weights.weight, weights.bias, spec), cut)
    return conv2d(F.pad(x, (0, 1, 0, 1)), weights.weight, weights.bias, spec, rules)
