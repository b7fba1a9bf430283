"""Weights that lie one after the other in one memory are also one weight, without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)  # tensors of any other class may have no memory, or do more than compute


def as_one(weights: Sequence[Tensor]) -> Tensor | None:
    """Matrices (rows, width) as the view of their memory that has all their rows; None if there is none.

    Asked at every call, since anybody may move or replace a weight at any time. Not to be asked while a
    compiler traces: it reads addresses. Gradients would go to the first weight only, so where they are asked
    for there is no view.
    """
    rows = _rows(weights)
    if rows is None or (torch.is_grad_enabled() and any(each.requires_grad for each in weights)):
        return None
    first = weights[0]
    width = first.size(1)
    return first.as_strided((rows, width), (width, 1))


def are_adjacent(weights: Sequence[Tensor]) -> bool:
    """Whether matrices of one width and dtype lie in one memory, each where the one before it ends."""
    return _rows(weights) is not None


def _rows(weights: Sequence[Tensor]) -> int | None:
    """How many rows they have together if they lie so, else None."""
    if weights[-1].storage_offset() == 0:  # as of most, which have a memory each
        return None
    first = weights[0]
    if type(first) not in _PLAIN or first.dim() != 2:
        return None
    width, rows, dtype, memory = first.size(1), 0, first.dtype, first.untyped_storage()._cdata
    begin = first.storage_offset()
    for each in weights:
        if each.storage_offset() != begin + rows * width or type(each) not in _PLAIN or each.dim() != 2:
            return None
        if each.size(1) != width or each.dtype is not dtype or not each.is_contiguous():
            return None
        if each.untyped_storage()._cdata != memory:  # not the address: two of different sizes may share one
            return None
        rows += each.size(0)
    return rows
