"""The few operations that all blocks are made of, each under the rules of the caller.

Shapes: images are (batch, channels, height, width), tokens (batch, tokens, channels). Weights are plain
tensors as torch.nn holds them. No function changes its arguments or returns one of them. Those of operators/
have other implementations than plain torch, which `rules.tuned` chooses among.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec, convolve
from lib_accel.blocks.operators.attention import ATTENTION, in_torch
from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.convolution_add import CONVOLUTION_ADD
from lib_accel.blocks.operators.convolution_norm import run_handed
from lib_accel.blocks.operators.gated_linear import GATED_LINEAR
from lib_accel.blocks.operators.group_norm import GROUP_NORM, GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.layer_norm import LAYER_NORM, LayerNormUse
from lib_accel.blocks.operators.linear_add import LINEAR_ADD
from lib_accel.blocks.operators.operator import run
from lib_accel.blocks.rules import Rules
from lib_accel.device import is_compiling


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, rules: Rules) -> Tensor:
    """Convolution of an image; weight (out, in / groups, height, width)."""
    x, weight, bias = cast(rules.matmul, x, weight, bias)
    return convolve(x, weight, bias, spec)


def conv2d_add(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, spec: ConvSpec, rules: Rules
) -> Tensor:
    """`conv2d(...) + residual`."""
    return run(CONVOLUTION_ADD, rules.tuned, x, weight, bias, residual, spec, rules.matmul)


def conv2d_norm_silu(
    handed: list[Tensor],
    convolution: tuple[Tensor, Tensor | None],
    spec: ConvSpec,
    shift: Tensor | None,
    norm: tuple[Tensor | None, Tensor | None],
    norm_spec: GroupNormSpec,
    rules: Rules,
) -> Tensor:
    """`silu(group_norm(conv2d(...) + shift))` as a convolution wants it: in the rules' dtype of products.

    handed: holds the image, and nothing afterwards: its memory is free once it is convolved, if nobody else
    holds it. convolution, norm: weight and bias of each. shift: (batch, out) or None.
    """
    use = GroupNormUse(norm_spec, silu=True, dtype=rules.norm, out_dtype=rules.matmul)
    return run_handed(rules.tuned, handed, *convolution, shift, *norm, spec, use, rules.matmul)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, rules: Rules) -> Tensor:
    """`x @ weight.T + bias` over the last dimension; weight (out, in)."""
    x, weight, bias = cast(rules.matmul, x, weight, bias)
    return F.linear(x, weight, bias)


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, rules: Rules) -> Tensor:
    """`linear(...) + residual`."""
    return run(LINEAR_ADD, rules.tuned, x, weight, bias, residual, rules.matmul)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, rules: Rules) -> Tensor:
    """`value * gelu(gate)` of a linear layer's result, values first; weight (2 * out, in)."""
    return run(GATED_LINEAR, rules.tuned, x, weight, bias, rules.matmul)


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    spec: GroupNormSpec,
    rules: Rules,
    *,
    silu: bool = False,
    to: torch.dtype | None = None,
) -> Tensor:
    """Group norm over the channels of an image, then SiLU if asked for; cast to `to`, if that is not None."""
    return run(GROUP_NORM, rules.tuned, x, weight, bias, GroupNormUse(spec, silu, rules.norm, to))


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    rules: Rules,
    *,
    to: torch.dtype | None = None,
) -> Tensor:
    """Layer norm over the last dimension; cast to `to`, if that is not None."""
    return run(LAYER_NORM, rules.tuned, x, weight, bias, LayerNormUse(eps, rules.norm, to))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, rules: Rules) -> Tensor:
    """Softmax attention of (batch, tokens, heads * size) tensors, scaled by 1 / sqrt(size)."""
    if rules.pieces is not None:  # nobody measured what takes the least memory, but torch's own kernels do
        return in_torch(query, key, value, heads, rules.matmul, rules.pieces)
    return run(ATTENTION, rules.tuned, query, key, value, heads, rules.matmul)


def has_channels_last(image: Tensor) -> bool:
    """Whether the positions of an image lie in memory as tokens do; never while a compiler traces.

    A compiler arranges memory itself, and that of torch 2.1 cannot trace the question.
    """
    return not is_compiling() and tokens_of(image).is_contiguous()


def tokens_of(image: Tensor) -> Tensor:
    """The positions of (batch, channels, height, width) as (batch, height * width, channels), not copied."""
    return image.flatten(2).transpose(1, 2)


def image_of(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens (batch, height * width, channels) as an image of the size of `like`, not copied."""
    batch, _, channels = tokens.shape
    # Not a view of the transposed tokens: that of a single image has strides that torch takes for channels
    # first.
    return tokens.view(batch, *like.shape[2:], channels).permute(0, 3, 1, 2)
