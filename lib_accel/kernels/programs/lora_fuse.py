"""Writes many weights of one shape, each as its base plus the scaled products of its own pairs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def summed(
    layers,
    pairs,
    height,
    width,
    WEIGHT: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
):
    """One program a tile of one weight.

    layers: (count, 4) int64: addresses of the weight and its base, its first pair and the one after its last.
    pairs: (count, 5) int64: addresses of up and down, the rank, how far apart rows of up are, and the bits of
    the scale, a float32.
    """
    across = tl.cdiv(width, WIDTH)
    tiles = tl.cdiv(height, HEIGHT) * across
    program = tl.program_id(0)
    layer = layers + program // tiles * 4
    # All memory that torch hands out begins at a multiple of 16; `why_not` looks, as the compiler cannot.
    live = tl.multiple_of(tl.load(layer).to(tl.pointer_type(WEIGHT)), 16)
    base = tl.multiple_of(tl.load(layer + 1).to(tl.pointer_type(WEIGHT)), 16)
    first = tl.load(layer + 2).to(tl.int32)
    last = tl.load(layer + 3).to(tl.int32)

    row = (program % tiles // across * HEIGHT + tl.arange(0, HEIGHT))[:, None]
    column = (program % across * WIDTH + tl.arange(0, WIDTH))[None, :]
    mask = (row < height) & (column < width)
    total = tl.load(base + row * width + column, mask=mask, other=0.0).to(tl.float32)
    for pair in range(first, last):
        up = tl.multiple_of(tl.load(pairs + pair * 5).to(tl.pointer_type(FACTOR)), 16)
        down = tl.multiple_of(tl.load(pairs + pair * 5 + 1).to(tl.pointer_type(FACTOR)), 16)
        rank = tl.load(pairs + pair * 5 + 2).to(tl.int32)
        apart = tl.load(pairs + pair * 5 + 3).to(tl.int32)
        product = tl.zeros((HEIGHT, WIDTH), tl.float32)
        for start in range(0, rank, RANK):
            across_rank = start + tl.arange(0, RANK)[None, :]
            along_rank = start + tl.arange(0, RANK)[:, None]
            left = tl.load(
                up + row * apart + across_rank, mask=(row < height) & (across_rank < rank), other=0.0
            )
            right = tl.load(
                down + along_rank * width + column, mask=(along_rank < rank) & (column < width), other=0.0
            )
            product = tl.dot(left, right, product, input_precision=PRECISION)
        scale = tl.load(pairs + pair * 5 + 4).to(tl.int32).to(tl.float32, bitcast=True)
        total += scale * product
    tl.store(live + row * width + column, total, mask=mask)
