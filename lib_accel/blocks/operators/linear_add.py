"""A linear layer that ends a residual branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.operators.casts import add, cast
from lib_accel.blocks.operators.operator import Implementation, Operator, by_tile
from lib_accel.kernels import bias_residual


def plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, dtype: torch.dtype | None
) -> Tensor:
    """`x @ weight.T + bias + residual`; x (..., in), weight (out, in), residual (..., out).

    The linear layer's operands are cast to `dtype` first, if that is not None.
    """
    return add(F.linear(*cast(dtype, x, weight, bias)), residual)


def others(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, dtype: torch.dtype | None
) -> Sequence[Implementation]:
    """The product alone, then bias and residual at once by our kernel, with each of its tiles."""
    x, weight, bias = cast(dtype, x, weight, bias)
    product = x.new_empty((*x.shape[:-1], len(weight)))
    if bias is None or bias_residual.why_not(product, bias, residual):
        return ()

    return by_tile("Triton", _by_kernel, bias_residual.candidates(product, bias, residual))


def _by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, dtype: torch.dtype | None, *, tile: Any
) -> Tensor:
    return bias_residual.launch(F.linear(*cast(dtype, x, weight)), bias, residual, tile=tile)


LINEAR_ADD = Operator("linear, residual", plain, others, ((0, 1), (), (), (0, 1), ()))
