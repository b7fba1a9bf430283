"""The middle of a residual block: a convolution, the shift by the embedding, norm and SiLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec, convolve, result_like
from lib_accel.blocks.operators import group_norm
from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.group_norm import GroupNormUse, kernel_norm, rounds_as_kernel
from lib_accel.blocks.operators.operator import Implementation, Operator, by_tile
from lib_accel.kernels import group_norm as kernel


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    norm: Tensor | None,
    norm_bias: Tensor | None,
    spec: ConvSpec,
    use: GroupNormUse,
    dtype: torch.dtype | None,
) -> Tensor:
    """Group norm, with what `use` says, of the convolution of x (batch, channels, height, width) + shift.

    shift: (batch, out) or None; norm, norm_bias: (out,) or None. The convolution's operands are cast to
    `dtype` first, if that is not None.
    """
    x, weight, bias = cast(dtype, x, weight, bias)
    image = convolve(x, weight, bias, spec)
    if shift is not None:
        image.add_(shift.to(image.dtype)[..., None, None])
    return group_norm.plain(image, norm, norm_bias, use)


def others(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    norm: Tensor | None,
    norm_bias: Tensor | None,
    spec: ConvSpec,
    use: GroupNormUse,
    dtype: torch.dtype | None,
) -> Sequence[Implementation]:
    """The convolution without its bias, which the norm's kernel adds with the shift, by each of its tiles."""
    image = result_like(x, weight, spec, dtype or x.dtype)
    added = _added(bias, shift, len(x))
    inside = kernel_norm(image.dtype, use)
    if not rounds_as_kernel(use) or kernel.why_not(image, norm, norm_bias, inside, added):
        return ()
    return by_tile("Triton", _by_kernel, kernel.candidates(image, norm, norm_bias, inside, added))


def _by_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    norm: Tensor | None,
    norm_bias: Tensor | None,
    spec: ConvSpec,
    use: GroupNormUse,
    dtype: torch.dtype | None,
    *,
    tile: Any,
) -> Tensor:
    x, weight = cast(dtype, x, weight)
    image, added = convolve(x, weight, None, spec), _added(bias, shift, len(x))
    return kernel.launch(image, norm, norm_bias, kernel_norm(image.dtype, use), added, tile=tile)


def _added(bias: Tensor | None, shift: Tensor | None, batch: int) -> Tensor | None:
    """Bias and shift in one, (batch, out), contiguous, in float32."""
    if bias is None:
        return shift
    if shift is None:
        return bias.expand(batch, -1).contiguous()
    return shift.float() + bias


CONVOLUTION_NORM = Operator("convolution, norm", plain, others, ((0, 2, 3), (), (), (0,), (), (), (), (), ()))
