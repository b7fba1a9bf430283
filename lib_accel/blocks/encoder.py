"""One layer of a CLIP text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.ops import layer_norm, linear
from lib_accel.blocks.rules import Rules


class EncoderWeights(NamedTuple):
    """Weights of one layer of width `channels`."""

    norm1: Tensor  # (channels,)
    norm1_bias: Tensor
    query: Tensor  # (channels, channels), as are the next three; or (3 * channels, channels) for all of them
    query_bias: Tensor | None
    key: Tensor | None  # None where `query` holds it, as is value
    key_bias: Tensor | None
    value: Tensor | None
    value_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm2: Tensor  # (channels,)
    norm2_bias: Tensor
    hidden: Tensor  # (inner, channels)
    hidden_bias: Tensor | None
    proj: Tensor  # (channels, inner)
    proj_bias: Tensor | None


class EncoderSpec(NamedTuple):
    """What of a layer is not a tensor."""

    heads: int
    eps: tuple[float, float]  # of both norms
    activation: str  # a key of ACTIVATIONS
    tokens_first: bool = False  # (tokens, batch, channels) in and out


class Mask(NamedTuple):
    """Which tokens a token attends to: those before it, or as the tensor says, or all."""

    # Added to the scores, or if it is boolean, true where a token attends; broadcasts to
    # (batch, heads, tokens, tokens).
    bias: Tensor | None = None
    is_causal: bool = False  # only where there is no bias


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU, `x * sigmoid(1.702 * x)`: https://github.com/openai/CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"quick_gelu": quick_gelu, "gelu": F.gelu}
)


def encoder_layer(x: Tensor, mask: Mask, weights: EncoderWeights, spec: EncoderSpec, rules: Rules) -> Tensor:
    """`x + attention(norm1(x))`, then the same with `proj(activation(hidden(norm2(x))))`.

    x: (batch, tokens, channels), or as `spec` says.
    """
    w = weights
    if spec.tokens_first:
        x = x.transpose(0, 1)
    normed = layer_norm(x, w.norm1, w.norm1_bias, spec.eps[0], rules, to=rules.matmul)
    mixed = _attend(*_project(normed, w, rules), mask, spec.heads)
    x = x + linear(mixed, w.out, w.out_bias, rules)
    normed = layer_norm(x, w.norm2, w.norm2_bias, spec.eps[1], rules, to=rules.matmul)
    hidden = ACTIVATIONS[spec.activation](linear(normed, w.hidden, w.hidden_bias, rules))
    x = x + linear(hidden, w.proj, w.proj_bias, rules)
    return x.transpose(0, 1) if spec.tokens_first else x


def _project(normed: Tensor, w: EncoderWeights, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    query = linear(normed, w.query, w.query_bias, rules)
    if w.key is None or w.value is None:
        query, key, value = query.chunk(3, dim=-1)
        return query, key, value
    key = linear(normed, w.key, w.key_bias, rules)
    return query, key, linear(normed, w.value, w.value_bias, rules)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask, heads: int) -> Tensor:
    bias = _fit(mask.bias, query.dtype)
    batch, tokens, channels = query.shape
    query, key, value = (
        t.view(batch, tokens, heads, channels // heads).transpose(1, 2) for t in (query, key, value)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=mask.is_causal)
    return mixed.transpose(1, 2).reshape(batch, tokens, channels)


def _fit(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as attention in `dtype` takes it.

    The lowest number of a wider dtype becomes the lowest of this one. As -inf, which rounding makes of it, a
    row that is all masked would be NaN.
    """
    if bias is None or bias.dtype in (torch.bool, dtype):
        return bias
    return bias.to(dtype).clamp(min=torch.finfo(dtype).min)
