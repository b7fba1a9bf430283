"""Which tile a shape gets: one table a kernel, from the smallest class of shapes to the largest.

Reasoned, not measured: no GPU has timed them yet. The rules: a thread reads at most 16 bytes at once, so
that 128 threads read 1024 float16 elements in one go; one to four goes in flight hide the memory's latency; a
thread has at most 255 registers, and a value in float32 takes one; a tile's contiguous side fills whole lines
of 128 bytes; small shapes are cut finer, since a GPU of 132 processors wants some hundred programs. Every
entry is compiled for every supported architecture by `python -m lib_accel.kernels`, and none may spill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

ANY = 2**31  # the last entry of a table that has no largest shape; above what an int32 counts


class Line(NamedTuple):
    """A run of elements that one program holds."""

    up_to: int  # the largest shape of the class, in what the table says
    block: int  # a power of two
    warps: int  # of 32 threads


class Tile(NamedTuple):
    """A rectangle that one program holds; what its sides are, the table says."""

    up_to: int
    high: int
    wide: int
    warps: int


class Chunk(NamedTuple):
    """A rectangle of channels and pixels, and how many pixels one program walks over with it."""

    up_to: int
    channels: int
    pixels: int
    per_chunk: int
    warps: int


class Product(NamedTuple):
    """A tile of a weight, and how much of a rank is multiplied at once; tensor cores want at least 16."""

    up_to: int
    height: int
    width: int
    rank: int
    warps: int


Entry = TypeVar("Entry", Line, Tile, Chunk, Product)


def pick(table: Sequence[Entry], size: int) -> Entry:
    """The entry of the smallest class that holds `size`; there must be one."""
    return next(entry for entry in table if size <= entry.up_to)


# Group norm of groups that one program walks over, by elements a group. Above that, the usual 32 groups of a
# batch of two are too few programs for the work that each would have.
WHOLE_GROUPS = (
    Line(up_to=1024, block=1024, warps=4),
    Line(up_to=4096, block=2048, warps=8),
    Line(up_to=16384, block=4096, warps=16),
)

# Group norm of larger groups, by pixels an image. Channels first: one row of pixels after the other. A
# partial result is 8 bytes, written once and read twice, against the 64 to 16384 pixels that it stands for.
CHUNKS_CHANNELS_FIRST = (
    Chunk(up_to=64, channels=32, pixels=64, per_chunk=64, warps=4),
    Chunk(up_to=256, channels=8, pixels=256, per_chunk=256, warps=4),
    Chunk(up_to=1024, channels=2, pixels=1024, per_chunk=1024, warps=4),
    Chunk(up_to=ANY, channels=1, pixels=2048, per_chunk=16384, warps=4),
)

# Channels last: 64 channels are one line of float16, and divide every width of these models.
CHUNKS_CHANNELS_LAST = (
    Chunk(up_to=16384, channels=64, pixels=32, per_chunk=128, warps=4),
    Chunk(up_to=ANY, channels=64, pixels=32, per_chunk=1024, warps=4),
)

# The partial results of a group, by their number.
GROUP_MOMENTS = (
    Line(up_to=256, block=256, warps=1),
    Line(up_to=ANY, block=1024, warps=4),
)

# Layer norm, by width: rows x a power of two that holds the width.
WHOLE_ROWS = (
    Tile(up_to=256, high=8, wide=256, warps=4),
    Tile(up_to=512, high=8, wide=512, warps=4),
    Tile(up_to=1024, high=4, wide=1024, warps=4),
    Tile(up_to=2048, high=2, wide=2048, warps=4),
    Tile(up_to=4096, high=1, wide=4096, warps=4),
    Tile(up_to=8192, high=1, wide=8192, warps=8),
)

# GEGLU, by width of the result: 256 divides 1280, 2560 and 5120.
GEGLU = (
    Tile(up_to=128, high=16, wide=128, warps=4),
    Tile(up_to=ANY, high=8, wide=256, warps=4),
)

# LoRA, by the largest rank. Two float32 tiles are held, the sum and the product of one pair. More than 16
# ranks at once spill on Turing, whose tensor cores Triton leaves alone.
FUSE_HALF = (Product(up_to=ANY, height=64, width=64, rank=16, warps=4),)

# The same where the factors are float32, multiplied exactly, and not on tensor cores.
FUSE_SINGLE = (Product(up_to=ANY, height=32, width=32, rank=16, warps=8),)
