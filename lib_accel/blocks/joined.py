"""Two images side by side along the channels, of which a residual block is computed as if they were one.

So an output block of a UNet begins: with what comes from below, and its skip. Where it was measured to pay,
one kernel joins them and computes the norm of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.joined_norm import JOINED_NORM
from lib_accel.blocks.operators.operator import Arguments, run_several
from lib_accel.blocks.rules import Rules

Images = tuple[Tensor, Tensor]  # left and right, each (batch, channels of its own, height, width)
Norm = tuple[Tensor | None, Tensor | None]  # weight and bias, (channels of both,)


def fit(left: Tensor, right: Tensor) -> bool:
    """Whether two images can lie side by side as they are."""
    return (
        left.dim() == right.dim() == 4
        and left.shape[0] == right.shape[0]
        and left.shape[2:] == right.shape[2:]
        and left.dtype is right.dtype
        and left.device == right.device
    )


def is_worth_joining(images: Images, norm: Norm, spec: GroupNormSpec, rules: Rules) -> bool:
    """Whether something else than plain torch was chosen for these, which joins them by itself."""
    tuned = rules.tuned
    return (
        tuned is not None
        and tuned.implementation(JOINED_NORM, _arguments(images, norm, spec, rules)) is not None
    )


def norm_silu(images: Images, norm: Norm, spec: GroupNormSpec, rules: Rules) -> tuple[Tensor, Tensor]:
    """`silu(group_norm(...))` of the joined image, in the rules' dtype of products; and that image itself."""
    normed, joined = run_several(JOINED_NORM, rules.tuned, *_arguments(images, norm, spec, rules))
    return normed, joined


def room_for(images: Images) -> Tensor:
    """New memory for the joined image, laid out as it would be, with nothing in it."""
    left, right = images
    first = left.is_contiguous() and right.is_contiguous()
    batch, channels, height, width = left.shape
    return torch.empty(
        (batch, channels + right.shape[1], height, width),
        dtype=left.dtype,
        device=left.device,
        memory_format=torch.contiguous_format if first else torch.channels_last,
    )


def _arguments(images: Images, norm: Norm, spec: GroupNormSpec, rules: Rules) -> Arguments:
    return (*images, *norm, GroupNormUse(spec, silu=True, dtype=rules.norm, out_dtype=rules.matmul))
