"""The form of each operator's results, by that of its arguments: what a compiler asks before there are any.

Sizes may be symbols of a compiler, which `len` would turn into the numbers that they happen to stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec, result_like
from lib_accel.blocks.operators.attention import ATTENTION
from lib_accel.blocks.operators.convolution_add import CONVOLUTION_ADD
from lib_accel.blocks.operators.convolution_norm import CONVOLUTION_NORM
from lib_accel.blocks.operators.gated_linear import GATED_LINEAR
from lib_accel.blocks.operators.group_norm import GROUP_NORM, GroupNormUse, kernel_norm
from lib_accel.blocks.operators.joined_norm import JOINED_NORM
from lib_accel.blocks.operators.layer_norm import LAYER_NORM, LayerNormUse
from lib_accel.blocks.operators.linear_add import LINEAR_ADD


class Form(NamedTuple):
    """A result without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.memory_format = torch.contiguous_format


def _attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, dtype: torch.dtype | None
) -> list[Form]:
    return [Form(tuple(query.shape), dtype or query.dtype)]


def _convolution_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    spec: ConvSpec,
    dtype: torch.dtype | None,
) -> list[Form]:
    return [_convolved(x, weight, spec, torch.promote_types(dtype or x.dtype, residual.dtype))]


def _convolution_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    norm: Tensor | None,
    norm_bias: Tensor | None,
    spec: ConvSpec,
    use: GroupNormUse,
    dtype: torch.dtype | None,
) -> list[Form]:
    return [_convolved(x, weight, spec, _normed(dtype or x.dtype, use))]


def _gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> list[Form]:
    return [Form((*x.shape[:-1], weight.shape[0] // 2), dtype or x.dtype)]


def _group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse) -> list[Form]:
    return [Form(tuple(x.shape), _normed(x.dtype, use), _layout(x))]


def _joined_norm(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse
) -> list[Form]:
    shape = (left.shape[0], left.shape[1] + right.shape[1], *left.shape[2:])
    dtype = torch.promote_types(left.dtype, right.dtype)
    return [Form(shape, each, _layout(left)) for each in (_normed(dtype, use), dtype)]


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, use: LayerNormUse) -> list[Form]:
    return [Form(tuple(x.shape), use.out_dtype or use.dtype or x.dtype)]


def _linear_add(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, dtype: torch.dtype | None
) -> list[Form]:
    return [Form((*x.shape[:-1], weight.shape[0]), torch.promote_types(dtype or x.dtype, residual.dtype))]


def _convolved(x: Tensor, weight: Tensor, spec: ConvSpec, dtype: torch.dtype) -> Form:
    like = result_like(x, weight, spec, dtype)
    return Form(tuple(like.shape), dtype, _layout(like))


def _normed(dtype: torch.dtype, use: GroupNormUse) -> torch.dtype:
    return use.out_dtype or kernel_norm(dtype, use).dtype


def _layout(image: Tensor) -> torch.memory_format:
    is_last = not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


# By the operator's name, of its arguments.
FORMS: Mapping[str, Callable[..., list[Form]]] = MappingProxyType(
    {
        ATTENTION.name: _attention,
        CONVOLUTION_ADD.name: _convolution_add,
        CONVOLUTION_NORM.name: _convolution_norm,
        GATED_LINEAR.name: _gated_linear,
        GROUP_NORM.name: _group_norm,
        JOINED_NORM.name: _joined_norm,
        LAYER_NORM.name: _layer_norm,
        LINEAR_ADD.name: _linear_add,
    }
)
