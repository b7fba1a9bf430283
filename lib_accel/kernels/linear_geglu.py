"""A linear layer with the gated activation behind it, in one launch: its own result is never in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.kernels import configs, geglu
from lib_accel.kernels.configs import Gated
from lib_accel.kernels.order import Case, in_order
from lib_accel.kernels.support import (
    INT32,
    current,
    is_plain,
    programs,
    why_not_programs,
    why_not_tensors,
    why_not_vectors,
)
from lib_accel.kernels.tolerance import rounded

# Of the reference, which rounds four times; the kernel rounds once. What the rounding of a gate makes of the
# GELU, |x * gelu'(x) - gelu(x)|, is up to 0.3, times a value of up to about four.
TOLERANCES = rounded(times=4, slope=1.2, arithmetic=1e-4)

_DTYPES = (torch.float16, torch.bfloat16)
_OLDEST_CAPABILITY = (8, 0)

# What lets a thread read 16 bytes at once; else the compiler runs out of registers.
_CHANNELS, _ALIGNMENT = 16, 16

# Major capabilities of GPUs with the shared memory that the larger tiles take.
_LARGE = (9, 10)


def linear_geglu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`reference`, by the kernel where `why_not` is empty."""
    return reference(x, weight, bias) if why_not(x, weight, bias) else launch(x, weight, bias)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`value * gelu(gate)` of `F.linear(x, weight, bias)`, values first; the result is (..., inner).

    x: (..., channels), weight: (2 * inner, channels) of one dtype, bias: (2 * inner,) of any or None. Rounded
    by the linear layer, by the GELU and by the product; the kernel adds and multiplies in float32 instead,
    and rounds once.
    """
    return geglu.reference(F.linear(x, weight, None if bias is None else bias.to(x.dtype)))


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[str, ...]:
    """Reasons for which the kernel cannot take these; empty if it can."""
    reasons = [*why_not_tensors(x, weight, bias), *_why_not_tensor_cores(x.device)]
    if x.dtype is not weight.dtype or x.dtype not in _DTYPES:
        reasons.append(f"dtypes are {x.dtype} and {weight.dtype}, needs one of {_DTYPES} for both")
    if x.dim() == 0 or weight.dim() != 2 or weight.shape[1] != x.shape[-1] or weight.shape[0] % 2:
        shapes = f"{tuple(x.shape)} and {tuple(weight.shape)}"
        return (*reasons, f"shapes are {shapes}, needs (..., channels) and (2 * inner, channels)")
    reasons += why_not_vectors(weight.shape[0], bias=bias)
    if not (x.is_contiguous() and weight.is_contiguous()):
        reasons.append(f"strides are {x.stride()} and {weight.stride()}, needs contiguous")
    elif all(map(is_plain, (x, weight))) and (x.data_ptr() % _ALIGNMENT or weight.data_ptr() % _ALIGNMENT):
        reasons.append(f"x or the weight does not begin at a multiple of {_ALIGNMENT} bytes")
    if x.shape[-1] % _CHANNELS or weight.shape[0] % (2 * _CHANNELS):
        sizes = f"channels are {x.shape[-1]}, of the result {weight.shape[0] // 2}"
        reasons.append(f"{sizes}, needs multiples of {_CHANNELS}")
    if weight.numel() > INT32:
        reasons.append(f"the weight has more than {INT32} elements")
    rows = x.numel() // max(x.shape[-1], 1)
    # A band of few rows is as many programs as a whole one of the smallest tile.
    return (*reasons, *why_not_programs((rows // 64 + 1) * (weight.shape[0] // 64 + 1)))


def candidates(x: Tensor, weight: Tensor, bias: Tensor | None) -> Sequence[Gated]:
    """Tiles that `launch` may take for these, its own first. Call it only where `why_not` is empty."""
    rows = x.numel() // x.shape[-1]
    case = Case("linear_geglu", "", x.dtype, rows, x.shape[-1])
    return in_order(configs.candidates(_table(x.device), rows), case, x.device)


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, *, tile: Gated | None = None) -> Tensor:
    """`reference` by the kernel, rounded once.

    Call it only where `why_not` is empty. tile: one of `candidates`; None takes the first.
    """
    tile = tile or candidates(x, weight, bias)[0]
    channels, inner = x.shape[-1], weight.shape[0] // 2
    out = torch.empty((*x.shape[:-1], inner), dtype=x.dtype, device=x.device)
    rows = x.numel() // channels
    with current(x.device):
        programs("linear_geglu").product_gated[(-(-rows // tile.rows) * -(-inner // tile.columns),)](
            x,
            weight,
            bias,
            out,
            rows,
            inner,
            channels,
            IS_EVEN=channels % tile.depth == 0,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            BAND=tile.band,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


@cache
def _table(device: torch.device) -> Mapping[int, tuple[Gated, ...]]:
    is_large = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in _LARGE
    return configs.LINEAR_GEGLU_LARGE if is_large else configs.LINEAR_GEGLU


@cache
def _why_not_tensor_cores(device: torch.device) -> tuple[str, ...]:
    if device.type != "cuda":
        return ()
    capability = torch.cuda.get_device_capability(device)
    if capability >= _OLDEST_CAPABILITY:
        return ()
    return (f"Triton leaves the tensor cores of capability {capability} alone, needs {_OLDEST_CAPABILITY}",)
