"""The gated activation of a transformer's feed-forward part, in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.kernels import configs
from lib_accel.kernels.configs import Tile
from lib_accel.kernels.order import Case, in_order
from lib_accel.kernels.support import current, programs, why_not_programs, why_not_tensors
from lib_accel.kernels.tolerance import rounded

# The GELU is rounded, and then the product.
TOLERANCES = rounded(times=2)


def geglu(x: Tensor) -> Tensor:
    """`reference`, by the kernel where `why_not` is empty."""
    return reference(x) if why_not(x) else launch(x)


def reference(x: Tensor) -> Tensor:
    """`value * gelu(gate)` of x (..., 2 * inner), values first; the result is (..., inner).

    The GELU is the exact one, rounded to the dtype of x before the product is.
    """
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def why_not(x: Tensor) -> tuple[str, ...]:
    """Reasons for which the kernel cannot take x; empty if it can."""
    reasons = list(why_not_tensors(x))
    if x.dim() == 0 or x.shape[-1] % 2:
        return (*reasons, f"shape is {tuple(x.shape)}, needs an even last dimension")
    if not x.is_contiguous():
        reasons.append(f"strides are {x.stride()} for {tuple(x.shape)}, needs contiguous")
    return (*reasons, *why_not_programs(x.numel() // 256 + x.numel() // max(x.shape[-1], 1)))


def candidates(x: Tensor) -> Sequence[Tile]:
    """Tiles that `launch` may take for x, its own first. Call it only where `why_not` is empty."""
    inner = x.shape[-1] // 2
    case = Case("geglu", "", x.dtype, x.numel() // x.shape[-1], inner)
    return in_order(configs.candidates(configs.GEGLU, inner), case, x.device)


def launch(x: Tensor, *, tile: Tile | None = None) -> Tensor:
    """`reference` by the kernel.

    Call it only where `why_not` is empty. tile: one of `candidates`; None takes the first.
    """
    tile = tile or candidates(x)[0]
    inner = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], inner), dtype=x.dtype, device=x.device)
    rows = out.numel() // inner
    grid = (-(-rows // tile.high) * -(-inner // tile.wide),)
    with current(x.device):
        programs("geglu").gated[grid](
            x, out, rows, inner, ROWS=tile.high, COLUMNS=tile.wide, num_warps=tile.warps
        )
    return out
