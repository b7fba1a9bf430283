"""Layer norm over the last dimension, with the cast that follows, in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.kernels import configs
from lib_accel.kernels.configs import Tile
from lib_accel.kernels.order import Case, in_order
from lib_accel.kernels.support import (
    DTYPES,
    current,
    programs,
    why_not_programs,
    why_not_tensors,
    why_not_vectors,
)
from lib_accel.kernels.tolerance import rounded

TOLERANCES = rounded(times=1)

WIDEST = max(configs.WHOLE_ROWS)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """`reference`, by the kernel where `why_not` is empty."""
    if why_not(x, weight, bias, dtype):
        return reference(x, weight, bias, eps, dtype)
    return launch(x, weight, bias, eps, dtype)


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """Layer norm over the last dimension of x (..., channels), computed in float32, rounded once to `dtype`.

    weight, bias: (channels,) of any dtype or None.
    """
    weight, bias = (None if t is None else t.float() for t in (weight, bias))
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(dtype)


def why_not(x: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> tuple[str, ...]:
    """Reasons for which the kernel cannot take these; empty if it can."""
    reasons = list(why_not_tensors(x, weight, bias))
    if dtype not in DTYPES:
        reasons.append(f"result is {dtype}, needs one of {DTYPES}")
    if x.dim() == 0:
        return (*reasons, "x has no dimension")
    reasons += why_not_vectors(x.shape[-1], weight=weight, bias=bias)
    if not x.is_contiguous():
        reasons.append(f"strides are {x.stride()} for {tuple(x.shape)}, needs contiguous")
    if x.shape[-1] > WIDEST:
        reasons.append(f"{x.shape[-1]} channels, one program holds at most {WIDEST}")
    return (*reasons, *why_not_programs(x.numel() // max(x.shape[-1], 1)))


def candidates(x: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Sequence[Tile]:
    """Tiles that `launch` may take for these, its own first. Call it only where `why_not` is empty."""
    width = x.shape[-1]
    case = Case("layer_norm", "", x.dtype, x.numel() // width, width)
    return in_order(configs.candidates(configs.WHOLE_ROWS, width), case, x.device)


def launch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """`reference` by the kernel.

    Call it only where `why_not` is empty. tile: one of `candidates`; None takes the first.
    """
    tile = tile or candidates(x, weight, bias, dtype)[0]
    out = torch.empty_like(x, dtype=dtype)
    width = x.shape[-1]
    rows = x.numel() // width
    with current(x.device):
        programs("layer_norm").whole_rows[(-(-rows // tile.high),)](
            x, weight, bias, out, rows, width, eps, ROWS=tile.high, COLUMNS=tile.wide, num_warps=tile.warps
        )
    return out
