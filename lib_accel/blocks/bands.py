"""A convolution band by band of rows, of an image that is made as it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec, convolve, output_size


class Source(NamedTuple):
    """An image as it is convolved, of which only bands are made."""

    like: Tensor  # has its batch, device and memory format
    shape: tuple[int, ...]  # channels, height, width
    dtype: torch.dtype
    write: Callable[[Tensor, int, int], None]  # into a tensor the rows from one to before another

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[1], self.shape[2]


class Convolution(NamedTuple):
    """What a source is convolved with."""

    weight: Tensor  # (out, channels / groups, height, width), of the source's dtype
    bias: Tensor | None
    spec: ConvSpec


# Takes rows of a convolution (batch, out, rows, width), and the number of the first of them.
Put = Callable[[Tensor, int], None]


def convolve_bands(source: Source, convolution: Convolution, band_bytes: int, put: Put) -> None:
    """Hands out the convolution of a source from above to below, in bands of about so many bytes.

    A band is made before the convolution of the one above it is handed out: that may be written over the
    source, unless padding wraps round.
    """
    weight, bias, spec = convolution
    across = spec._replace(padding=(0, spec.padding[1]))
    bands = list(_bands(source, convolution, band_bytes))
    ready: Tensor | None = _made(source, convolution, *bands[0])
    for number, (first, _) in enumerate(bands):
        assert ready is not None
        part = convolve(ready, weight, bias, across)
        ready = None  # before the next one is made
        if number + 1 < len(bands):
            ready = _made(source, convolution, *bands[number + 1])
        put(part, first)


def _bands(source: Source, convolution: Convolution, band_bytes: int) -> Iterator[tuple[int, int]]:
    """Rows of the result, from one to before another: bands of one size, but for the last."""
    weight, _, spec = convolution
    height, _ = output_size(source.size, weight, spec)
    channels, _, width = source.shape
    row_bytes = source.like.shape[0] * channels * width * spec.stride[0] * source.dtype.itemsize
    # No fewer than the padding: then a band reads no row that was written two bands before.
    rows = rows_of(height, max(1, spec.padding[0], band_bytes // row_bytes))
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def rows_of(height: int, most: int) -> int:
    """Rows of a band if there are to be as few as can be, about equal, and of `most` rows."""
    bands = -(-height // most)
    return -(-height // bands)


def _made(source: Source, convolution: Convolution, first: int, last: int) -> Tensor:
    """The rows of the source that these of the result are made of, with the padding above and below."""
    weight, _, spec = convolution
    start = first * spec.stride[0] - spec.padding[0]
    stop = (last - 1) * spec.stride[0] - spec.padding[0] + spec.dilation[0] * (weight.shape[2] - 1) + 1
    channels, height, width = source.shape
    like = source.like
    layout = torch.contiguous_format if like.is_contiguous() else torch.channels_last
    shape = (like.shape[0], channels, stop - start, width)
    band = torch.empty(shape, dtype=source.dtype, device=like.device, memory_format=layout)
    if spec.circular:
        for offset, begin, end in _wrapped(start, stop, height):
            source.write(band[:, :, offset : offset + end - begin], begin, end)
        return band
    above, below = min(max(0, -start), stop - start), max(0, stop - max(start, height))
    inside = stop - start - above - below
    if above:
        band[:, :, :above] = 0
    if below:
        band[:, :, stop - start - below :] = 0
    if inside:
        source.write(band[:, :, above : above + inside], start + above, start + above + inside)
    return band


def _wrapped(start: int, stop: int, height: int) -> Iterator[tuple[int, int, int]]:
    """Rows of an image without end as those of one: an offset, and rows from one to before another."""
    row = start
    while row < stop:
        begin = row % height
        end = min(height, begin + stop - row)
        yield row - start, begin, end
        row += end - begin
