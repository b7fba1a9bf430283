"""A linear layer, half of whose result gates the other: the first half of a feed-forward part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.operator import Implementation, Operator, by_tile
from lib_accel.kernels import geglu, linear_geglu


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """`value * gelu(gate)` of `x @ weight.T + bias`, values first; the result is (..., inner).

    x: (..., channels); weight: (2 * inner, channels); bias: (2 * inner,) or None. All are cast to `dtype`
    first, if that is not None.
    """
    x, weight, bias = cast(dtype, x, weight, bias)
    return geglu.reference(F.linear(x, weight, bias))


def others(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None
) -> Sequence[Implementation]:
    """The gate by our kernel, after the product or inside of it, with each of their tiles."""
    x, weight, bias = cast(dtype, x, weight, bias)
    found: list[Implementation] = []
    if not linear_geglu.why_not(x, weight, bias):
        found += by_tile("Triton inside the product", _inside, linear_geglu.candidates(x, weight, bias))
    product = x.new_empty((*x.shape[:-1], len(weight)))
    if not geglu.why_not(product):
        found += by_tile("Triton after the product", _after, geglu.candidates(product))
    return found


def _inside(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None, *, tile: Any
) -> Tensor:
    x, weight, bias = cast(dtype, x, weight, bias)
    return linear_geglu.launch(x, weight, bias, tile=tile)


def _after(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None, *, tile: Any) -> Tensor:
    return geglu.launch(F.linear(*cast(dtype, x, weight, bias)), tile=tile)


GATED_LINEAR = Operator("gated linear", plain, others, ((0, 1), (), (), ()))
