"""The spatial transformer: its frame (image to tokens and back) and the three parts of each block inside."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_accel.blocks.operators.casts import add, cast
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.operators.projections import Three, at_once
from lib_accel.blocks.ops import (
    attention,
    gated_linear,
    group_norm,
    has_channels_last,
    image_of,
    layer_norm,
    linear,
    linear_add,
    tokens_of,
)
from lib_accel.blocks.pieces import by_tokens, dtype_of, pieces_for
from lib_accel.blocks.rules import Rules
from lib_accel.device import is_compiling


class FrameWeights(NamedTuple):
    """Weights around the blocks; a 1x1 convolution is read as the linear layer that it is."""

    norm: Tensor  # (channels,)
    norm_bias: Tensor
    proj_in: Tensor  # (inner, channels) or (inner, channels, 1, 1)
    proj_in_bias: Tensor | None
    proj_out: Tensor  # (channels, inner) or (channels, inner, 1, 1)
    proj_out_bias: Tensor | None


class AttentionWeights(NamedTuple):
    """Weights of norm and attention; `source` is `channels` for self-attention, else the context's width."""

    norm: Tensor  # (channels,)
    norm_bias: Tensor
    query: Tensor  # (inner, channels)
    query_bias: Tensor | None
    key: Tensor  # (inner, source)
    key_bias: Tensor | None
    value: Tensor  # (inner, source)
    value_bias: Tensor | None
    out: Tensor  # (channels, inner)
    out_bias: Tensor | None


class AttentionSpec(NamedTuple):
    """What of an attention part is not a tensor."""

    eps: float
    heads: int


class FeedForwardWeights(NamedTuple):
    """Weights of norm and gated feed-forward."""

    norm: Tensor  # (channels,)
    norm_bias: Tensor
    proj: Tensor  # (2 * inner, channels): value, then gate
    proj_bias: Tensor | None
    out: Tensor  # (channels, inner)
    out_bias: Tensor | None


class FeedForwardSpec(NamedTuple):
    """What of a feed-forward part is not a tensor."""

    eps: float


class BlockWeights(NamedTuple):
    """Weights of the three parts of a block."""

    first: AttentionWeights
    second: AttentionWeights
    feed_forward: FeedForwardWeights


class BlockSpec(NamedTuple):
    """What of a block is not a tensor."""

    first: AttentionSpec
    crosses_first: bool  # whether the first attention has the context too, instead of the tokens
    second: AttentionSpec
    feed_forward: FeedForwardSpec


_ATTENTION_FIELDS = len(AttentionWeights._fields)


def block_weights(*flat: Tensor | None) -> BlockWeights:
    """The weights of a block, of those of its parts one after the other."""
    second = 2 * _ATTENTION_FIELDS
    parts: Any = (flat[:_ATTENTION_FIELDS], flat[_ATTENTION_FIELDS:second], flat[second:])
    return BlockWeights(
        AttentionWeights(*parts[0]), AttentionWeights(*parts[1]), FeedForwardWeights(*parts[2])
    )


def enter(x: Tensor, weights: FrameWeights, spec: GroupNormSpec, rules: Rules) -> Tensor:
    """Norm and projection of an image (batch, channels, height, width) to (batch, height * width, inner)."""
    w = weights
    normed = group_norm(x, w.norm, w.norm_bias, spec, rules, to=rules.matmul)
    tokens, weight = tokens_of(normed), w.proj_in.flatten(1)
    if has_channels_last(normed):
        return linear(tokens, weight, w.proj_in_bias, rules)
    # As one product of transposed matrices with its bias: a linear layer of tokens that lie apart in memory
    # is a copy of them, a product and an addition.
    weight, bias = cast(rules.matmul, weight, w.proj_in_bias)
    matrices = tokens, weight.t().expand(len(tokens), -1, -1)
    return torch.bmm(*matrices) if bias is None else torch.baddbmm(bias, *matrices)


def leave(tokens: Tensor, x: Tensor, weights: FrameWeights, rules: Rules) -> Tensor:
    """Projection of (batch, height * width, inner) back to an image, plus the image `x` that entered.

    The result lies in memory as `x` does. In another layout the next 3x3 convolution would copy its image or
    its weight, which costs a CPU as much as the convolution itself.
    """
    weight, bias = weights.proj_out.flatten(1), weights.proj_out_bias
    if has_channels_last(x):
        return image_of(linear_add(tokens, weight, bias, tokens_of(x), rules), x)
    tokens, weight, bias = cast(rules.matmul, tokens, weight, bias)
    matrices = weight.expand(len(tokens), -1, -1), tokens.transpose(1, 2)
    image = torch.bmm(*matrices) if bias is None else torch.baddbmm(bias[None, :, None], *matrices)
    return add(image.view(*image.shape[:2], *x.shape[2:]), x)


def attend(
    x: Tensor, context: Tensor | None, weights: AttentionWeights, spec: AttentionSpec, rules: Rules
) -> Tensor:
    """`attention(norm(x), context) + x`; without a context the normed tokens attend to themselves.

    x: (batch, tokens, channels); context: (batch, tokens of the prompt, source).
    """
    w = weights
    normed = layer_norm(x, w.norm, w.norm_bias, spec.eps, rules, to=rules.matmul)
    query, key, value = _projected(normed, context, w, rules)
    mixed = attention(query, key, value, spec.heads, rules)
    return linear_add(mixed, w.out, w.out_bias, x, rules)


def _projected(x: Tensor, context: Tensor | None, weights: AttentionWeights, rules: Rules) -> Three:
    """Query, key and value, of fewer products where weights lie so that one has several of them."""
    w = weights
    if not is_compiling() and may_be_packed(w):  # a compiler may not ask where weights lie
        found = at_once(x, context, w.query, w.key, w.value, dtype=rules.matmul)
        if found is not None:
            return found
    source = x if context is None else context
    return (
        linear(x, w.query, w.query_bias, rules),
        linear(source, w.key, w.key_bias, rules),
        linear(source, w.value, w.value_bias, rules),
    )


def may_be_packed(weights: AttentionWeights) -> bool:
    """Whether one product could have query, key and value: they are products and nothing else."""
    return weights.query_bias is None and weights.key_bias is None and weights.value_bias is None


def feed_forward(x: Tensor, weights: FeedForwardWeights, spec: FeedForwardSpec, rules: Rules) -> Tensor:
    """`out(value * gelu(gate)) + x`, value and gate projected from norm(x); x: (batch, tokens, channels)."""
    width = weights.proj.shape[0]
    if (cut := pieces_for(x.shape[0] * x.shape[1] * width, x, rules)) is not None:
        token_bytes = width * dtype_of(x, rules).itemsize
        return by_tokens(lambda some: _feed_forward(some, weights, spec, rules), x, token_bytes, cut)
    return _feed_forward(x, weights, spec, rules)


def _feed_forward(x: Tensor, weights: FeedForwardWeights, spec: FeedForwardSpec, rules: Rules) -> Tensor:
    w = weights
    normed = layer_norm(x, w.norm, w.norm_bias, spec.eps, rules, to=rules.matmul)
    hidden = gated_linear(normed, w.proj, w.proj_bias, rules)
    return linear_add(hidden, w.out, w.out_bias, x, rules)


def transformer_block(
    x: Tensor, context: Tensor | None, weights: BlockWeights, spec: BlockSpec, rules: Rules
) -> Tensor:
    """Both attentions, then the feed-forward; x: (batch, tokens, channels), context as in `attend`."""
    x = attend(x, context if spec.crosses_first else None, weights.first, spec.first, rules)
    x = attend(x, context, weights.second, spec.second, rules)
    return feed_forward(x, weights.feed_forward, spec.feed_forward, rules)
