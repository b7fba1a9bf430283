"""What tests of pieces share: ways to cut, and how far results are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from lib_accel.blocks.rules import Pieces

WHOLE = Pieces(2**60, 1)  # nothing is so large
ROWS = Pieces(0, 1)  # everything row by row
BANDS = Pieces(0, 6000)  # bands of some rows, the last of which is smaller
CUTS = {"row by row": ROWS, "by bands": BANDS}

# Of the norm: sums in another order, and what that rounds otherwise.
LIMITS = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 3e-3}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def laid(image: Tensor, layout: str) -> Tensor:
    """An image or a weight of a convolution in that layout."""
    is_last = layout == "channels last"
    return image.contiguous(memory_format=torch.channels_last) if is_last else image


def apart(ours: Tensor, right: Tensor) -> float:
    """The norm of the difference by that of the right one; shapes, dtypes and strides have to be the same."""
    assert (ours.shape, ours.dtype, ours.stride()) == (right.shape, right.dtype, right.stride())
    return float((ours.double() - right.double()).norm() / right.double().norm())
