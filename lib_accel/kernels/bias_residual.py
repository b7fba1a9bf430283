"""Bias and residual after a convolution or a linear layer that ran without its bias, in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib_accel.kernels import configs
from lib_accel.kernels.configs import Tile
from lib_accel.kernels.order import FIRST, LAST, Case, in_order
from lib_accel.kernels.support import current, programs, why_not_programs, why_not_tensors, why_not_vectors
from lib_accel.kernels.tolerance import rounded

TOLERANCES = rounded(times=1)


def bias_residual(x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """`reference`, by the kernel where `why_not` is empty."""
    return reference(x, bias, residual) if why_not(x, bias, residual) else launch(x, bias, residual)


def reference(x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """`x + bias + residual`, computed in float32 and rounded once, to what torch promotes the two dtypes to.

    x, residual: an image (batch, channels, height, width), or tokens (..., channels) in any other number of
    dimensions; both of one shape. bias: (channels,) of any dtype or None.
    """
    total = x.float()
    if bias is not None:
        total = total + (bias.float()[:, None, None] if x.dim() == 4 else bias.float())
    return (total + residual.float()).to(_result_dtype(x, residual))


def why_not(x: Tensor, bias: Tensor | None, residual: Tensor) -> tuple[str, ...]:
    """Reasons for which the kernel cannot take these; empty if it can."""
    reasons = list(why_not_tensors(x, bias, residual))
    if x.dim() == 0 or x.shape != residual.shape:
        shapes = f"{tuple(x.shape)} and {tuple(residual.shape)}"
        return (*reasons, f"shapes are {shapes}, needs one with a dimension of channels")
    reasons += why_not_vectors(_channels(x), bias=bias)
    if _is_last(x, residual) is None:
        strides = f"{x.stride()} and {residual.stride()}"
        return (*reasons, f"strides are {strides}, needs contiguous, or channels last in both images")
    rows, columns, _ = _matrix(x, residual)
    # The finest cut that any table makes is a program a row for 64 elements.
    return (*reasons, *why_not_programs(rows * (columns // 64 + 1)))


def candidates(x: Tensor, bias: Tensor | None, residual: Tensor) -> Sequence[Tile]:
    """Tiles that `launch` may take for these, its own first. Call it only where `why_not` is empty."""
    _, columns, channels = _matrix(x, residual)
    kind = LAST if _is_last(x, residual) else FIRST
    case = Case("bias_residual", kind, x.dtype, x.numel() // channels, channels)
    return in_order(configs.candidates(configs.BIAS_RESIDUAL, columns), case, x.device)


def launch(x: Tensor, bias: Tensor | None, residual: Tensor, *, tile: Tile | None = None) -> Tensor:
    """`reference` by the kernel, laid out in memory as x.

    Call it only where `why_not` is empty. tile: one of `candidates`; None takes the first.
    """
    tile = tile or candidates(x, bias, residual)[0]
    out = torch.empty_like(x, dtype=_result_dtype(x, residual))
    rows, columns, channels = _matrix(x, residual)
    steps = -(-columns // tile.wide)
    with current(x.device):
        programs("bias_residual").added[(-(-rows // tile.high) * steps,)](
            x,
            bias,
            residual,
            out,
            rows,
            columns,
            channels,
            LAST=bool(_is_last(x, residual)),
            ROWS=tile.high,
            COLUMNS=tile.wide,
            num_warps=tile.warps,
        )
    return out


def _matrix(x: Tensor, residual: Tensor) -> tuple[int, int, int]:
    """Rows and columns as they lie in memory, pixels x channels or channels x pixels, and the channels."""
    channels = _channels(x)
    columns = channels if _is_last(x, residual) else x.numel() // max(x.shape[0] * channels, 1)
    return x.numel() // max(columns, 1), columns, channels


def _is_last(x: Tensor, residual: Tensor) -> bool | None:
    """Whether channels come last in memory, in both; None if they are of no layout that we take."""
    both = (x, residual)
    if all(each.is_contiguous() for each in both):
        return x.dim() != 4
    if x.dim() == 4 and all(each.is_contiguous(memory_format=torch.channels_last) for each in both):
        return True
    return None


def _channels(x: Tensor) -> int:
    return x.shape[1 if x.dim() == 4 else -1]


def _result_dtype(x: Tensor, residual: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, residual.dtype)
