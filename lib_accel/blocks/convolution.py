"""One convolution, by the way that is fastest for its shape on its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.device import is_compiling


class ConvSpec(NamedTuple):
    """What of a two-dimensional convolution is not a tensor: pairs of (height, width)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    circular: bool = False  # the padding wraps round instead of being zero, as for tiling pictures


# oneDNN copies a float32 weight into a blocked layout at every call. That is lost in the arithmetic where
# the image is large, but where the weight does not fit the cache and the image is small, it is most of the
# time: one matrix product over the unfolded image reads the weight once, as it lies. How dear the copy is
# depends on the process: glibc maps blocks of more than 32 MiB anew at each allocation, and the kernel then
# clears every page, unless the heap happens to have a free block as large. Measured with torch 2.13.0 on an
# AVX-512 EPYC, one thread, at 8 to 32 positions: 2.5 to 2.8 times faster where the pages are new, 0.8 to 1.0
# times where they are not. At 72 to 128 positions it is 1.0 to 1.5 and 0.6 to 0.7 times.
_LARGE_WEIGHT_BYTES = 32 * 2**20
_FEW_POSITIONS = 32


# Images of so few channels are latents and pictures, which leave the model.
_FEW_CHANNELS = 8


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """`F.conv2d(x, weight, bias, ...)` of (batch, channels, height, width), equal up to rounding."""
    if spec.circular:
        high, wide = spec.padding
        x = F.pad(x, (wide, wide, high, high), mode="circular")
        spec = spec._replace(padding=(0, 0), circular=False)
    if x.device.type == "cpu" and weight.is_contiguous() and not is_compiling():
        # A channels-last image would make torch copy the weight to that layout at every call, unless it lies
        # in both.
        x = x if weight.shape[2:] == (1, 1) else x.contiguous()
        if weight.nbytes > _LARGE_WEIGHT_BYTES and x.dtype is weight.dtype is torch.float32:
            positions = _output_positions(x, weight, spec)
            if spec.groups == 1 and 0 < positions <= _FEW_POSITIONS:
                return _convolve_by_product(x, weight, bias, spec)
    image = F.conv2d(x, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)
    # Channels first, whatever its weight does: random numbers "like" it are drawn in the order of memory.
    return image.contiguous() if len(weight) <= _FEW_CHANNELS else image


def result_like(
    x: Tensor, weight: Tensor, spec: ConvSpec, dtype: torch.dtype, size: tuple[int, int] | None = None
) -> Tensor:
    """An empty image of the shape and memory format that the convolution of these has, in `dtype`.

    size: height and width, if not x is convolved but what is made of it.
    """
    is_last = not weight.is_contiguous() or (
        not x.is_contiguous() and (x.device.type != "cpu" or weight.shape[2:] == (1, 1))
    )
    is_last = is_last and len(weight) > _FEW_CHANNELS
    layout = torch.channels_last if is_last else torch.contiguous_format
    shape = (
        x.shape[0],
        len(weight),
        *output_size(size or x.shape[2:], weight, spec),
    )  # a compiler takes len for a number
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout)


def output_size(size: Sequence[int], weight: Tensor, spec: ConvSpec) -> tuple[int, int]:
    """Height and width of the convolution of an image of that height and width."""
    height, width = (
        (size[axis] + 2 * spec.padding[axis] - spec.dilation[axis] * (weight.shape[axis + 2] - 1) - 1)
        // spec.stride[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width


def _output_positions(x: Tensor, weight: Tensor, spec: ConvSpec) -> int:
    height, width = output_size(x.shape[2:], weight, spec)
    return x.shape[0] * height * width


def _convolve_by_product(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    batch, out = x.shape[0], weight.shape[0]
    unfolded = F.unfold(
        x, weight.shape[2:], padding=spec.padding, stride=spec.stride, dilation=spec.dilation
    )  # (batch, in * height * width of the kernel, positions)
    columns = unfolded.transpose(0, 1).reshape(unfolded.shape[1], -1)
    product = torch.mm(weight.view(out, -1), columns)
    image = product.view(out, batch, *output_size(x.shape[2:], weight, spec)).transpose(0, 1).contiguous()
    return image if bias is None else image.add_(bias[:, None, None])
