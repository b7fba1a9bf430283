"""Group norm of an image, with the SiLU and the cast after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.operator import Implementation, Operator, by_tile
from lib_accel.kernels import group_norm as kernel


class GroupNormSpec(NamedTuple):
    """What of a group norm is not a tensor."""

    groups: int
    eps: float
    upcast: bool  # GroupNorm32: computes in float32 whatever comes, returns the input's dtype


class GroupNormUse(NamedTuple):
    """A group norm where it stands in a block."""

    norm: GroupNormSpec
    silu: bool
    dtype: torch.dtype | None  # that operands are cast to; None leaves them as they are
    out_dtype: torch.dtype | None  # that the result is cast to in the end


def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse) -> Tensor:
    """Group norm over the channels of x (batch, channels, height, width), SiLU if asked for, and a cast.

    weight, bias: (channels,) or None.
    """
    source = x.float() if use.norm.upcast else x
    source, weight, bias = cast(use.dtype, source, weight, bias)
    normed = F.group_norm(source, use.norm.groups, weight, bias, use.norm.eps)
    del source  # a copy, where x was widened
    if use.norm.upcast:
        normed = normed.to(x.dtype)
    if use.silu:
        normed = F.silu(normed, inplace=True)
    result: Tensor = cast(use.out_dtype, normed)[0]
    return result


def others(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse
) -> Sequence[Implementation]:
    """By one of our kernels, with each of its tiles."""
    norm = kernel_norm(x.dtype, use)
    if not rounds_as_kernel(use) or kernel.why_not(x, weight, bias, norm):
        return ()
    return by_tile("Triton", _by_kernel, kernel.candidates(x, weight, bias, norm))


def _by_kernel(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, use: GroupNormUse, *, tile: Any
) -> Tensor:
    return kernel.launch(x, weight, bias, kernel_norm(x.dtype, use), tile=tile)


def rounds_as_kernel(use: GroupNormUse) -> bool:
    """Whether operands are not narrowed before: the kernel computes in float32 whatever comes."""
    return use.dtype in (None, torch.float32)


def kernel_norm(dtype: torch.dtype, use: GroupNormUse) -> kernel.Norm:
    """The same for the kernel, of an image of that dtype, rounded where torch rounds."""
    result = dtype if use.norm.upcast or use.dtype is None else use.dtype
    return kernel.Norm(use.norm.groups, use.norm.eps, result, use.silu, use.out_dtype)


GROUP_NORM = Operator("group norm", plain, others, ((0, 2, 3), (), (), ()))
