"""Large images and many tokens piece by piece, so that what a block makes on its way never exists as a whole.

The result is the same up to rounding: statistics of a norm are those of the whole image, and a band of rows
is convolved with the rows around it. Sizes alone decide where. Implementations that were chosen for operators
are for whole tensors: where memory is what may fail, pieces go first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.bands import Convolution, Source, convolve_bands, rows_of
from lib_accel.blocks.convolution import ConvSpec, output_size, result_like
from lib_accel.blocks.moments import moments
from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.group_norm import GroupNormUse, kernel_norm
from lib_accel.blocks.rules import Pieces, Rules
from lib_accel.device import is_compiling

_MIB = 2**20

_CPU = Pieces(whole_bytes=16 * _MIB, piece_bytes=8 * _MIB)
_LEAST_WHOLE = 512 * _MIB  # on a GPU: a VAE makes as much of 1024 x 1024 pixels in half precision
_WHOLE_SHARE = 8  # one part of so many of a GPU's memory
_GPU_PIECE = 32 * _MIB  # small enough for its cache, and large enough to keep all of it busy


@cache
def _of_gpu(device: torch.device) -> Pieces:
    """Nothing of it was measured yet, so that only what may not fit is cut."""
    memory = torch.cuda.get_device_properties(device).total_memory
    return Pieces(max(_LEAST_WHOLE, memory // _WHOLE_SHARE), _GPU_PIECE)


# A CPU gains by pieces that fit its caches, as new memory costs it more than the calls.
BY_DEVICE: Mapping[str, Callable[[torch.device], Pieces]] = MappingProxyType(
    {"cpu": lambda device: _CPU, "cuda": _of_gpu}
)

# For a block that has found no memory.
SCARCE = Pieces(whole_bytes=8 * _MIB, piece_bytes=4 * _MIB)


class Norm(NamedTuple):
    """A group norm of an image, and what follows it; weight and bias are (channels,) or None."""

    weight: Tensor | None
    bias: Tensor | None
    use: GroupNormUse


def usual(device: torch.device) -> Pieces | None:
    """From which size on intermediates are made in pieces on a device; None for never."""
    by_device = BY_DEVICE.get(device.type)
    return None if by_device is None else by_device(device)


def pieces_for(elements: int, x: Tensor, rules: Rules) -> Pieces | None:
    """How an intermediate of so many elements is cut that is made of x, or None where it is not."""
    if is_compiling() or torch.is_grad_enabled():  # a result that is written band by band has no history
        return None
    pieces = rules.pieces or usual(x.device)
    is_large = pieces is not None and elements * dtype_of(x, rules).itemsize > pieces.whole_bytes
    return pieces if is_large else None


def dtype_of(x: Tensor, rules: Rules) -> torch.dtype:
    """In which a product with x is computed."""
    return rules.matmul or x.dtype


def pieces_for_norm(x: Tensor, channels: int, rules: Rules) -> Pieces | None:
    """How norms of images as large as x are cut that have so many channels, or None if they are not."""
    pieces = pieces_for(x.shape[0] * channels * x.shape[2] * x.shape[3], x, rules)
    # Operands that are narrowed before a norm would have to be so here.
    return pieces if rules.norm in (None, torch.float32) else None


# What is convolved


def normed(x: Tensor, norm: Norm, pieces: Pieces) -> Source:
    """The group norm of x, with SiLU and casts as `norm.use` says."""
    use, (_, *shape) = norm.use, x.shape
    scale, shift = _folded(x, norm, pieces)
    dtype = kernel_norm(x.dtype, use).dtype

    def write(rows: Tensor, first: int, last: int) -> None:
        own = rows if rows.dtype is dtype else torch.empty_like(rows, dtype=dtype)
        _write_scaled(own, x[:, :, first:last], scale, shift)
        if use.silu:
            F.silu(own, inplace=True)
        if own is not rows:
            rows.copy_(own)

    return Source(x, tuple(shape), use.out_dtype or dtype, write)


def doubled(x: Tensor, dtype: torch.dtype) -> Source:
    """Each pixel of x twice in height and width."""
    _, channels, height, width = x.shape

    def write(rows: Tensor, first: int, last: int) -> None:
        larger = F.interpolate(x[:, :, first // 2 : (last + 1) // 2], scale_factor=2.0, mode="nearest")
        rows.copy_(larger[:, :, first % 2 : first % 2 + last - first])

    return Source(x, (channels, 2 * height, 2 * width), dtype, write)


def padded(x: Tensor, dtype: torch.dtype) -> Source:
    """x with a row of zeros below it and a column of zeros to its right."""
    _, channels, height, width = x.shape

    def write(rows: Tensor, first: int, last: int) -> None:
        inside = min(last, height) - first
        rows[:, :, :inside, :width] = x[:, :, first : first + inside]
        rows[:, :, inside:] = 0
        rows[..., width:] = 0

    return Source(x, (channels, height + 1, width + 1), dtype, write)


def _folded(x: Tensor, norm: Norm, pieces: Pieces) -> tuple[Tensor, Tensor]:
    """What normalises x (batch, channels, height, width): a factor and a summand, (batch, channels, 1, 1)."""
    (batch, channels, height, _), spec = x.shape, norm.use.norm
    wide = torch.promote_types(x.dtype, torch.float32)
    row_bytes = x[:, :, 0].numel() * wide.itemsize
    mean, variance = moments(x, spec.groups, rows_of(height, max(1, pieces.piece_bytes // row_bytes)))
    scale = (variance + spec.eps).rsqrt_()[..., None].expand(-1, -1, channels // spec.groups)
    if norm.weight is not None:
        scale = scale * norm.weight.to(wide).view(spec.groups, -1)
    shift = -mean[..., None] * scale
    if norm.bias is not None:
        shift += norm.bias.to(wide).view(spec.groups, -1)
    return scale.reshape(batch, channels, 1, 1), shift.reshape(batch, channels, 1, 1)


def _write_scaled(into: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> None:
    """`x * scale + shift`, computed in the dtype of the latter and rounded once."""
    if x.device.type != "cpu":
        torch.addcmul(shift, x, scale, out=into)  # one kernel, that reads and writes any dtype
    elif into.dtype is scale.dtype:
        torch.mul(x, scale, out=into).add_(shift)
    else:
        wide = torch.empty(x.shape, dtype=scale.dtype).copy_(x)  # a product of two dtypes goes value by value
        into.copy_(wide.mul_(scale).add_(shift))


# The convolution of it


def convolution_by(rules: Rules, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Convolution:
    """A convolution under the rules."""
    weight, bias = cast(rules.matmul, weight, bias)
    return Convolution(weight, bias, spec)


def convolved(
    source: Source, convolution: Convolution, pieces: Pieces, shift: Tensor | None = None
) -> Tensor:
    """The convolution of a source + shift (batch, out), if that is not None."""
    weight, _, spec = convolution
    result = result_like(source.like, weight, spec, source.dtype, source.size)
    added = None if shift is None else shift.to(source.dtype)[..., None, None]

    def put(part: Tensor, first: int) -> None:
        rows = result[:, :, first : first + part.shape[2]]
        if added is None:
            rows.copy_(part)
        else:
            torch.add(part, added, out=rows)

    convolve_bands(source, convolution, pieces.piece_bytes, put)
    return result


def convolved_add(
    source: Source,
    convolution: Convolution,
    pieces: Pieces,
    residual: Callable[[int, int], Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """The convolution of a source + residual, whose rows from one to before another are asked for.

    dtype: the residual's. What the source is made of is lost: its memory may be the result's.
    """
    weight, _, spec = convolution
    image, total = source.like, torch.promote_types(source.dtype, dtype)
    shape = (image.shape[0], weight.shape[0], *output_size(source.size, weight, spec))
    # Rows that wrap round are read last, when they are written over.
    fits = shape == tuple(image.shape) and total is image.dtype and spec.stride == (1, 1)
    result = image if fits and not spec.circular else result_like(image, weight, spec, total, source.size)

    def put(part: Tensor, first: int) -> None:
        last = first + part.shape[2]
        torch.add(part, residual(first, last), out=result[:, :, first:last])

    convolve_bands(source, convolution, pieces.piece_bytes, put)
    return result


# Tokens


def by_tokens(compute: Callable[[Tensor], Tensor], x: Tensor, token_bytes: int, pieces: Pieces) -> Tensor:
    """`compute` of x (batch, tokens, channels), which must go token by token, of some tokens at a time.

    token_bytes: what it makes of one token on its way.
    """
    tokens = x.reshape(1, -1, x.shape[-1])
    count = tokens.shape[1]
    result: Tensor | None = None
    some = rows_of(count, max(1, pieces.piece_bytes // token_bytes))
    for first in range(0, count, some):
        part = compute(tokens[:, first : first + some])
        if result is None:
            result = part.new_empty((1, count, part.shape[-1]))
        result[:, first : first + some] = part
    assert result is not None  # what is cut is not empty
    return result.view(*x.shape[:-1], -1)
