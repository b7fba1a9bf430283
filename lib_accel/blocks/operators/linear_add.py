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

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    """The product added to what is there; the product alone, then bias and residual at once by our kernel."""
    x, weight, bias = cast(dtype, x, weight, bias)
    product = x.new_empty((*x.shape[:-1], len(weight)))
    found = [Implementation("cuBLAS", onto_residual)] if _may_be_added_to(residual, product) else []
    if bias is None or bias_residual.why_not(product, bias, residual):
        return found
    return [*found, *by_tile("Triton", _by_kernel, bias_residual.candidates(product, bias, residual))]


def onto_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, dtype: torch.dtype | None
) -> Tensor:
    """`plain`, whose product is added to residual and bias as it is computed, in its own precision.

    residual: contiguous, of the dtype that the product has.
    """
    x, weight, bias = cast(dtype, x, weight, bias)
    total = residual.clone() if bias is None else residual + bias
    rows = total.view(-1, total.shape[-1])
    rows.addmm_(x.reshape(-1, x.shape[-1]), weight.t())
    return total


def _may_be_added_to(residual: Tensor, product: Tensor) -> bool:
    """Whether cuBLAS could add such a product to a copy of the residual, and the sum would have its form."""
    return (
        residual.is_cuda
        and product.dtype in _DTYPES
        and residual.dtype is product.dtype
        and residual.shape == product.shape
        and residual.is_contiguous()
    )


def _by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, dtype: torch.dtype | None, *, tile: Any
) -> Tensor:
    return bias_residual.launch(F.linear(*cast(dtype, x, weight)), bias, residual, tile=tile)


LINEAR_ADD = Operator("linear, residual", plain, others, ((0, 1), (), (), (0, 1), ()))
