"""A convolution that ends a residual branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec, convolve, result_like
from lib_accel.blocks.operators.casts import add, cast
from lib_accel.blocks.operators.operator import Implementation, Operator, by_tile
from lib_accel.kernels import bias_residual


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    spec: ConvSpec,
    dtype: torch.dtype | None,
) -> Tensor:
    """The convolution of x (batch, channels, height, width) + residual (batch, out, height, width).

    The convolution's operands are cast to `dtype` first, if that is not None.
    """
    x, weight, bias = cast(dtype, x, weight, bias)
    return add(convolve(x, weight, bias, spec), residual)


def others(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    spec: ConvSpec,
    dtype: torch.dtype | None,
) -> Sequence[Implementation]:
    """The convolution without its bias, then bias and residual at once by our kernel."""
    result = result_like(x, weight, spec, dtype or x.dtype)
    if bias is None or bias_residual.why_not(result, bias, residual):
        return ()

    return by_tile("Triton", _by_kernel, bias_residual.candidates(result, bias, residual))


def _by_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    spec: ConvSpec,
    dtype: torch.dtype | None,
    *,
    tile: Any,
) -> Tensor:
    x, weight = cast(dtype, x, weight)
    image = convolve(x, weight, None, spec)
    if image.stride() != residual.stride():  # of another memory format than was foreseen
        return add(image.add_(bias.to(image.dtype)[:, None, None]), residual)
    return bias_residual.launch(image, bias, residual, tile=tile)


CONVOLUTION_ADD = Operator("convolution, residual", plain, others, ((0, 2, 3), (), (), (0, 2, 3), (), ()))
