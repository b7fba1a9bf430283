"""What every operator does with the dtypes of its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def cast(dtype: torch.dtype | None, *tensors: Any) -> Any:
    """The tensors (or None) in `dtype`, or as they are if that is None."""
    if dtype is None:
        return tensors
    return tuple([t if t is None or t.dtype is dtype else t.to(dtype) for t in tensors])


def add(own: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of `own` where that has its dtype: nobody else may hold that tensor."""
    return own.add_(other) if own.dtype is other.dtype else own + other
