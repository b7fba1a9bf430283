"""Group norm of one image, or of two side by side along the channels; no atomics, so the same bits each time.

An image is a matrix in memory: (pixels, channels) where channels come last, and (1, channels * pixels) where
they come first. Two images are joined along its columns, the first of which are the first image's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read(x, second, image, row, column, mask, rows, columns, split):
    """Elements of image number `image`.

    That is an int64, as a batch may be larger than an int32 counts. Inside an image int32 does, and halves
    the registers that addresses take.
    """
    if second is None:
        value = tl.load(x + image * rows * columns + (row * columns + column), mask=mask, other=0.0)
    else:
        rest = columns - split
        is_first = column < split
        left = x + image * rows * split + (row * split + column)
        right = second + image * rows * rest + (row * rest + column - split)
        # Chosen, not added: minus zero must stay what it is.
        value = tl.where(
            is_first,
            tl.load(left, mask=mask & is_first, other=0.0),
            tl.load(right, mask=mask & (column >= split), other=0.0),
        )
    return value


@triton.jit
def shifted(value, shift, image, channels, channel, mask):
    """In float32, plus what is added to each channel of the image, if anything."""
    value = value.to(tl.float32)
    if shift is not None:
        value += tl.load(shift + image * channels + channel, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def small_quotient(value, by):
    """`value // by` for 0 <= value < 2**20, exact there: the half keeps it clear of whole numbers."""
    return ((value.to(tl.float32) + 0.5) * (1.0 / by)).to(tl.int32)


@triton.jit
def in_matrix(element, first, width, pixels, LAST: tl.constexpr):
    """Row and column of elements of a group that begins at channel `first`, counted as they lie in memory."""
    if LAST:
        row = small_quotient(element, width)
        column = first + element - row * width
    else:
        row = 0
        column = first * pixels + element
    return row, column


@triton.jit
def counted(value, mask, count, mean, square):
    """Welford's recurrence: `mean` and `square`, the summed squared deviation, of one more value a lane.

    count: how many values each lane has with this one; broadcast to the lanes.
    """
    delta = tl.where(mask, value - mean, 0.0)
    mean += delta * (1.0 / tl.maximum(count, 1.0))
    square += delta * tl.where(mask, value - mean, 0.0)
    return mean, square


@triton.jit
def activated(value, SILU: tl.constexpr, NORM: tl.constexpr):
    """Rounds as torch does between a norm and its SiLU; float32 in and out."""
    value = value.to(NORM).to(tl.float32)
    if SILU:
        value = (value / (1.0 + tl.exp(-value))).to(NORM).to(tl.float32)
    return value


@triton.jit
def whole_groups(
    x,
    second,
    shift,
    weight,
    bias,
    out,
    joined,
    channels,
    split,
    pixels,
    width,
    eps,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a group of `width` channels, which is read twice: the second time it lies in the cache."""
    program = tl.program_id(0)
    groups = channels // width
    image = (program // groups).to(tl.int64)
    first = program % groups * width
    size = width * pixels
    if LAST:
        rows, columns, edge = pixels, channels, split
    else:
        rows, columns, edge = 1, channels * pixels, split * pixels

    count = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK,), tl.float32)
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        element = start + tl.arange(0, BLOCK)
        mask = element < size
        row, column = in_matrix(element, first, width, pixels, LAST)
        channel = column if LAST else first + small_quotient(element, pixels)
        value = read(x, second, image, row, column, mask, rows, columns, edge)
        value = shifted(value, shift, image, channels, channel, mask)
        count += mask.to(tl.float32)
        mean, square = counted(value, mask, count, mean, square)
    # Rounded right: a plain division is off by a bit or two, of a mean that may be large.
    centre = tl.div_rn(tl.sum(count * mean, axis=0), size * 1.0)
    apart = mean - centre
    scale = 1.0 / tl.sqrt(tl.sum(square + count * apart * apart, axis=0) / size + eps)

    begin = image * channels * pixels
    for start in range(0, size, BLOCK):
        element = start + tl.arange(0, BLOCK)
        mask = element < size
        row, column = in_matrix(element, first, width, pixels, LAST)
        source = read(x, second, image, row, column, mask, rows, columns, edge)
        place = row * columns + column
        if joined is not None:
            tl.store(joined + begin + place, source, mask=mask)
        channel = column if LAST else first + small_quotient(element, pixels)
        value = (shifted(source, shift, image, channels, channel, mask) - centre) * scale
        if weight is not None:
            value *= tl.load(weight + channel, mask=mask, other=0.0).to(tl.float32)
        if bias is not None:
            value += tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + begin + place, activated(value, SILU, NORM), mask=mask)


@triton.jit
def partial_moments(
    x,
    second,
    shift,
    means,
    squares,
    channels,
    split,
    pixels,
    chunks,
    per_chunk,
    LAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Mean and summed squared deviation of each channel's `per_chunk` pixels: (images, channels, chunks).

    Welford's recurrence in each lane, then Chan's formula over them, so that a large mean costs no digits.
    """
    program = tl.program_id(0)
    chunk = program % chunks
    blocks = tl.cdiv(channels, CHANNELS)
    image = (program // chunks // blocks).to(tl.int64)
    channel = (program // chunks % blocks * CHANNELS + tl.arange(0, CHANNELS))[:, None]
    begin = chunk * per_chunk
    end = tl.minimum(begin + per_chunk, pixels)
    if shift is not None:
        place = image * channels + channel
        extra = tl.load(shift + place, mask=channel < channels, other=0.0).to(tl.float32)

    count = tl.zeros((1, PIXELS), tl.float32)
    mean = tl.zeros((CHANNELS, PIXELS), tl.float32)
    square = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for start in range(begin, end, PIXELS):
        pixel = start + tl.arange(0, PIXELS)[None, :]
        mask = (pixel < end) & (channel < channels)
        if LAST:
            value = read(x, second, image, pixel, channel, mask, pixels, channels, split)
        else:
            flat = channel * pixels + pixel
            value = read(x, second, image, 0, flat, mask, 1, channels * pixels, split * pixels)
        value = value.to(tl.float32)
        if shift is not None:
            value += extra
        count += (pixel < end).to(tl.float32)
        mean, square = counted(value, mask, count, mean, square)

    total = tl.div_rn(tl.sum(count * mean, axis=1), (end - begin) * 1.0)[:, None]
    apart = mean - total
    square = tl.sum(square + count * apart * apart, axis=1)[:, None]
    place = image * channels * chunks + (channel * chunks + chunk)
    tl.store(means + place, total, mask=channel < channels)
    tl.store(squares + place, square, mask=channel < channels)


@triton.jit
def group_moments(
    means, squares, mean_out, scale_out, pixels, chunks, per_chunk, width, eps, BLOCK: tl.constexpr
):
    """One program a group: its mean and 1 / sqrt(variance + eps), of all its channels' chunks."""
    program = tl.program_id(0)
    parts = width * chunks  # they lie one after the other
    base = program.to(tl.int64) * parts
    size = width * pixels * 1.0

    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        count = tl.minimum(pixels - part % chunks * per_chunk, per_chunk).to(tl.float32)
        total += count * tl.load(means + base + part, mask=part < parts, other=0.0)
    mean = tl.div_rn(tl.sum(total, axis=0), size)

    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        mask = part < parts
        count = tl.minimum(pixels - part % chunks * per_chunk, per_chunk).to(tl.float32)
        apart = tl.load(means + base + part, mask=mask, other=0.0) - mean
        square = tl.load(squares + base + part, mask=mask, other=0.0)
        total += tl.where(mask, square + count * apart * apart, 0.0)
    variance = tl.sum(total, axis=0) / size

    tl.store(mean_out + program, mean)
    tl.store(scale_out + program, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def normalise(
    x,
    second,
    shift,
    mean_in,
    scale_in,
    weight,
    bias,
    out,
    joined,
    channels,
    split,
    pixels,
    width,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
    NORM: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """One program a tile of channels and pixels, each normalised by its group's moments."""
    program = tl.program_id(0)
    steps = tl.cdiv(pixels, PIXELS)
    blocks = tl.cdiv(channels, CHANNELS)
    image = (program // steps // blocks).to(tl.int64)
    channel = (program // steps % blocks * CHANNELS + tl.arange(0, CHANNELS))[:, None]
    pixel = (program % steps * PIXELS + tl.arange(0, PIXELS))[None, :]
    known = channel < channels
    mask = (pixel < pixels) & known
    if LAST:
        source = read(x, second, image, pixel, channel, mask, pixels, channels, split)
        place = pixel * channels + channel
    else:
        flat = channel * pixels + pixel
        source = read(x, second, image, 0, flat, mask, 1, channels * pixels, split * pixels)
        place = flat
    begin = image * channels * pixels
    if joined is not None:
        tl.store(joined + begin + place, source, mask=mask)

    group = image * (channels // width) + channel // width
    scale = tl.load(scale_in + group, mask=known, other=0.0)
    value = shifted(source, shift, image, channels, channel, known)
    value -= tl.load(mean_in + group, mask=known, other=0.0)
    if weight is not None:
        scale *= tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    value *= scale
    if bias is not None:
        value += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    tl.store(out + begin + place, activated(value, SILU, NORM), mask=mask)
