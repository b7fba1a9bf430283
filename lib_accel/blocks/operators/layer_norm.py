"""Layer norm over the last dimension, with the cast after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.operator import Implementation, Operator, by_tile
from lib_accel.kernels import layer_norm as kernel


class LayerNormUse(NamedTuple):
    """A layer norm where it stands in a block."""

    eps: float
    dtype: torch.dtype | None  # that operands are cast to; None leaves them as they are
    out_dtype: torch.dtype | None  # that the result is cast to in the end


def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, use: LayerNormUse) -> Tensor:
    """Layer norm of x (..., channels), and a cast; weight and bias are (channels,) or None."""
    channels = x.shape[-1:]
    x, weight, bias = cast(use.dtype, x, weight, bias)
    result: Tensor = cast(use.out_dtype, F.layer_norm(x, channels, weight, bias, use.eps))[0]
    return result


def others(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, use: LayerNormUse
) -> Sequence[Implementation]:
    """By our kernel, with each of its tiles."""
    # The kernel rounds once, as torch does unless it rounds to one dtype and casts to another.
    dtype = _dtype(x, use)
    rounded = x.dtype if use.dtype is None else use.dtype
    if rounded not in (torch.float32, dtype) or kernel.why_not(x, weight, bias, dtype):
        return ()
    return by_tile("Triton", _by_kernel, kernel.candidates(x, weight, bias, dtype))


def _by_kernel(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, use: LayerNormUse, *, tile: Any
) -> Tensor:
    return kernel.launch(x, weight, bias, use.eps, _dtype(x, use), tile=tile)


def _dtype(x: Tensor, use: LayerNormUse) -> torch.dtype:
    """The result's."""
    return use.out_dtype or use.dtype or x.dtype


LAYER_NORM = Operator("layer norm", plain, others, ((0, 1), (), (), ()))
