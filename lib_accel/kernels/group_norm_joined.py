"""Group norm of two images side by side along the channels, which need not be joined in memory before.

A residual block at the beginning of a UNet's output block is computed from two such: what comes from below,
and its skip.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib_accel.kernels.group_norm import TOLERANCES as TOLERANCES
from lib_accel.kernels.group_norm import Given, Norm, Way, launch_images, ways, why_not_images
from lib_accel.kernels.group_norm import reference as reference_of_one


def group_norm_joined(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """`reference`, by the kernel where `why_not` is empty."""
    if why_not(left, right, weight, bias, norm):
        return reference(left, right, weight, bias, norm, keep=keep)
    return launch(left, right, weight, bias, norm, keep=keep)


def reference(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The group norm of `torch.cat([left, right], dim=1)`, and that image itself if `keep`.

    left, right: (batch, channels of its own, height, width) of one dtype; weight, bias: (channels of both,).
    """
    joined = torch.cat([left, right], dim=1)
    return reference_of_one(joined, weight, bias, norm), joined if keep else None


def why_not(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm
) -> tuple[str, ...]:
    """Reasons for which the kernel cannot take these; empty if it can."""
    return why_not_images((left, right), weight, bias, norm)


def candidates(
    left: Tensor, right: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm
) -> Sequence[Way]:
    """Ways that `launch` may take for these, its own first. Call it only where `why_not` is empty."""
    return ways((left, right), norm)


def launch(
    left: Tensor,
    right: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    *,
    keep: bool,
    tile: Way | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`reference` by the kernel, laid out in memory as the images.

    Call it only where `why_not` is empty. tile: one of `candidates`; None takes the first.
    """
    batch, channels, height, width = left.shape
    shape = (batch, channels + right.shape[1], height, width)
    first = left.is_contiguous() and right.is_contiguous()
    layout = torch.contiguous_format if first else torch.channels_last
    out = torch.empty(shape, dtype=norm.out_dtype or norm.dtype, device=left.device, memory_format=layout)
    joined = torch.empty_like(out, dtype=left.dtype) if keep else None
    given = Given((left, right), weight, bias, None, norm)
    launch_images(given, out=out, joined=joined, tile=tile)
    return out, joined
