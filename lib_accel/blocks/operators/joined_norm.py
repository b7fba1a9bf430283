"""Group norm of two images side by side along the channels, and the image that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.operators import group_norm
from lib_accel.blocks.operators.group_norm import GroupNormUse, kernel_norm, rounds_as_kernel
from lib_accel.blocks.operators.operator import Implementation, Operator, by_tile
from lib_accel.kernels import group_norm as kernel_of_one
from lib_accel.kernels import group_norm_joined as kernel


def plain(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse
) -> tuple[Tensor, Tensor]:
    """The group norm of `torch.cat([left, right], dim=1)`, with what `use` says; and that image itself.

    left, right: (batch, channels of its own, height, width); weight, bias: (channels of both,) or None.
    """
    joined = torch.cat([left, right], dim=1)
    return group_norm.plain(joined, weight, bias, use), joined


def others(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse
) -> Sequence[Implementation]:
    """Both in one by our kernel, with each of its tiles; and torch's joining before our kernel of one image.

    The latter is what runs where this operator has no winner and `group_norm` has one, so it must be beaten.
    """
    norm = kernel_norm(left.dtype, use)
    if not rounds_as_kernel(use) or kernel.why_not(left, right, weight, bias, norm):
        return ()
    tiles = kernel.candidates(left, right, weight, bias, norm)
    return [*by_tile("Triton", _by_kernel, tiles), *by_tile("torch.cat, Triton", _after_torch, tiles)]


def _by_kernel(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse, *, tile: Any
) -> tuple[Tensor, Tensor]:
    norm = kernel_norm(left.dtype, use)
    normed, joined = kernel.launch(left, right, weight, bias, norm, keep=True, tile=tile)
    assert joined is not None
    return normed, joined


def _after_torch(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse, *, tile: Any
) -> tuple[Tensor, Tensor]:
    joined = torch.cat([left, right], dim=1)
    return kernel_of_one.launch(joined, weight, bias, kernel_norm(left.dtype, use), tile=tile), joined


JOINED_NORM = Operator("join, group norm", plain, others, ((0, 2, 3), (0, 2, 3), (), (), ()))
