"""Which tile a shape gets: one table a kernel, from the smallest class of shapes to the largest.

A table maps the largest size of a class to its tiles: first the one that is taken where nothing was measured,
then those that may be faster on some GPU. Reasoned, not measured: no GPU has timed them yet. The rules: a
thread reads at most 16 bytes at once, so that 128 threads read 1024 float16 elements in one go; one to four
goes in flight hide the memory's latency; a thread has at most 255 registers, and a value in float32 takes
one; a tile's contiguous side fills whole lines of 128 bytes; small shapes are cut finer, since a GPU of 132
processors wants some hundred programs. Every tile is compiled for every architecture that may take it by
`python -m lib_accel.kernels`, and none may spill.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

ANY = 2**31  # the last class of a table that has no largest shape; above what an int32 counts


class Line(NamedTuple):
    """A run of elements that one program holds."""

    block: int  # a power of two
    warps: int  # of 32 threads


class Tile(NamedTuple):
    """A rectangle that one program holds; what its sides are, the table says."""

    high: int
    wide: int
    warps: int


class Chunk(NamedTuple):
    """A rectangle of channels and pixels, and how many pixels one program walks over with it."""

    channels: int
    pixels: int
    per_chunk: int
    warps: int


class Product(NamedTuple):
    """A tile of a weight, and how much of a rank is multiplied at once; tensor cores want at least 16."""

    height: int
    width: int
    rank: int
    warps: int


class Gated(NamedTuple):
    """A tile of a gated product, for which two float32 tiles are held, and how memory is read for it."""

    rows: int
    columns: int
    depth: int  # channels that are multiplied at once
    band: int  # tiles of rows whose programs run side by side
    warps: int
    stages: int  # parts of `depth` channels that are on their way or in use at one time


Entry = TypeVar("Entry", Line, Tile, Chunk, Product, Gated)


def candidates(table: Mapping[int, tuple[Entry, ...]], size: int) -> tuple[Entry, ...]:
    """The tiles of the smallest class that holds `size`; there must be one. The table's own comes first."""
    return next(tiles for up_to, tiles in table.items() if size <= up_to)


def pick(table: Mapping[int, tuple[Entry, ...]], size: int) -> Entry:
    """The table's own tile of the smallest class that holds `size`."""
    return candidates(table, size)[0]


def group_norm(elements: int, pixels: int, *, is_last: bool) -> tuple[Line | Chunk, ...]:
    """Ways to compute a group norm of so many elements a group and pixels an image, the usual one first."""
    split = candidates(CHUNKS_CHANNELS_LAST if is_last else CHUNKS_CHANNELS_FIRST, pixels)
    if elements <= SPLIT_FROM:
        return candidates(WHOLE_GROUPS, elements)
    if elements > max(WHOLE_GROUPS):
        return split
    whole = candidates(WHOLE_GROUPS, elements)
    return (*whole, *split) if elements <= WHOLE_UP_TO else (*split, *whole)


# Group norm of groups that one program walks over, by elements a group. All threads of one program read the
# more at once, the fewer programs there are.
WHOLE_GROUPS: Mapping[int, tuple[Line, ...]] = MappingProxyType(
    {
        1024: (Line(block=1024, warps=4), Line(block=512, warps=2)),
        4096: (Line(block=2048, warps=8), Line(block=4096, warps=8), Line(block=1024, warps=4)),
        16384: (Line(block=4096, warps=16), Line(block=4096, warps=32)),
        65536: (Line(block=4096, warps=32), Line(block=4096, warps=16)),
    }
)

# Up to here one program a group is the table's own choice. Above, the usual 32 groups of a batch of two are
# few programs for the work that each has, against two launches more and a second reading from memory.
WHOLE_UP_TO = 16384

# From here, and as far as WHOLE_GROUPS goes, either form may be the faster one.
SPLIT_FROM = 4096

# Group norm of larger groups, by pixels an image. Channels first: one row of pixels after the other. A
# partial result is 8 bytes, written once and read twice, against the 64 to 16384 pixels that it stands for.
CHUNKS_CHANNELS_FIRST: Mapping[int, tuple[Chunk, ...]] = MappingProxyType(
    {
        64: (Chunk(channels=32, pixels=64, per_chunk=64, warps=4),),
        256: (Chunk(channels=8, pixels=256, per_chunk=256, warps=4),),
        1024: (
            Chunk(channels=2, pixels=1024, per_chunk=1024, warps=4),
            Chunk(channels=2, pixels=512, per_chunk=1024, warps=4),
        ),
        ANY: (
            Chunk(channels=1, pixels=2048, per_chunk=16384, warps=4),
            Chunk(channels=1, pixels=2048, per_chunk=4096, warps=4),
            Chunk(channels=2, pixels=1024, per_chunk=4096, warps=4),
        ),
    }
)

# Channels last: 64 channels are one line of float16, and divide every width of these models.
CHUNKS_CHANNELS_LAST: Mapping[int, tuple[Chunk, ...]] = MappingProxyType(
    {
        1024: (
            Chunk(channels=64, pixels=32, per_chunk=128, warps=4),
            Chunk(channels=64, pixels=16, per_chunk=32, warps=4),
        ),
        16384: (
            Chunk(channels=64, pixels=32, per_chunk=128, warps=4),
            Chunk(channels=64, pixels=32, per_chunk=64, warps=4),
            Chunk(channels=64, pixels=64, per_chunk=256, warps=8),
        ),
        ANY: (
            Chunk(channels=64, pixels=32, per_chunk=1024, warps=4),
            Chunk(channels=64, pixels=32, per_chunk=256, warps=4),
            Chunk(channels=128, pixels=32, per_chunk=1024, warps=8),
        ),
    }
)

# The partial results of a group, by their number.
GROUP_MOMENTS: Mapping[int, tuple[Line, ...]] = MappingProxyType(
    {
        256: (Line(block=256, warps=1),),
        ANY: (Line(block=1024, warps=4),),
    }
)

# Layer norm, by width: rows x a power of two that holds the width.
WHOLE_ROWS: Mapping[int, tuple[Tile, ...]] = MappingProxyType(
    {
        256: (Tile(high=8, wide=256, warps=4), Tile(high=4, wide=256, warps=4)),
        512: (Tile(high=8, wide=512, warps=4), Tile(high=4, wide=512, warps=4)),
        1024: (
            Tile(high=4, wide=1024, warps=4),
            Tile(high=2, wide=1024, warps=4),
            Tile(high=1, wide=1024, warps=2),
        ),
        2048: (
            Tile(high=2, wide=2048, warps=4),
            Tile(high=1, wide=2048, warps=4),
            Tile(high=1, wide=2048, warps=8),
        ),
        4096: (Tile(high=1, wide=4096, warps=4), Tile(high=1, wide=4096, warps=8)),
        8192: (Tile(high=1, wide=8192, warps=8), Tile(high=1, wide=8192, warps=16)),
    }
)

# GEGLU, by width of the result: 256 divides 1280, 2560 and 5120.
GEGLU: Mapping[int, tuple[Tile, ...]] = MappingProxyType(
    {
        128: (Tile(high=16, wide=128, warps=4),),
        ANY: (
            Tile(high=8, wide=256, warps=4),
            Tile(high=4, wide=256, warps=4),
            Tile(high=2, wide=512, warps=4),
            Tile(high=1, wide=1024, warps=4),
        ),
    }
)

# Bias and residual, by what lies one after the other: pixels with channels first, else channels.
BIAS_RESIDUAL: Mapping[int, tuple[Tile, ...]] = MappingProxyType(
    {
        64: (Tile(high=32, wide=64, warps=4), Tile(high=16, wide=64, warps=4)),
        256: (Tile(high=8, wide=256, warps=4), Tile(high=4, wide=256, warps=4)),
        ANY: (
            Tile(high=8, wide=256, warps=4),
            Tile(high=4, wide=256, warps=4),
            Tile(high=2, wide=1024, warps=4),
            Tile(high=1, wide=1024, warps=4),
        ),
    }
)

# LoRA, by the largest rank. Two float32 tiles are held, the sum and the product of one pair. More than 16
# ranks at once spill on Turing, whose tensor cores Triton leaves alone.
FUSE_HALF: Mapping[int, tuple[Product, ...]] = MappingProxyType(
    {ANY: (Product(height=64, width=64, rank=16, warps=4), Product(height=64, width=64, rank=16, warps=8))}
)

# The same where the factors are float32, multiplied exactly, and not on tensor cores.
FUSE_SINGLE: Mapping[int, tuple[Product, ...]] = MappingProxyType(
    {ANY: (Product(height=32, width=32, rank=16, warps=8),)}
)

# Linear layer and GEGLU, by rows. Few rows: more programs than processors come before the larger tile. Each
# of these fits into the 99 KiB of shared memory that a program has on Ada and on consumers' Ampere.
LINEAR_GEGLU: Mapping[int, tuple[Gated, ...]] = MappingProxyType(
    {
        256: (
            Gated(rows=64, columns=64, depth=32, band=8, warps=4, stages=4),
            Gated(rows=64, columns=32, depth=64, band=8, warps=4, stages=4),
            Gated(rows=128, columns=64, depth=32, band=8, warps=8, stages=4),
        ),
        ANY: (
            Gated(rows=128, columns=64, depth=32, band=8, warps=4, stages=4),
            Gated(rows=128, columns=64, depth=32, band=8, warps=8, stages=4),
            Gated(rows=128, columns=64, depth=64, band=8, warps=8, stages=3),
            Gated(rows=64, columns=64, depth=32, band=8, warps=4, stages=4),
        ),
    }
)

# The same for the 227 KiB of Hopper, and of Blackwell in data centres, whose tensor cores read from shared
# memory and want 64 rows and 4 warps each.
LINEAR_GEGLU_LARGE: Mapping[int, tuple[Gated, ...]] = MappingProxyType(
    {
        256: (
            Gated(rows=64, columns=64, depth=64, band=8, warps=4, stages=4),
            Gated(rows=64, columns=32, depth=64, band=8, warps=4, stages=4),
            Gated(rows=128, columns=64, depth=64, band=8, warps=8, stages=4),
        ),
        1024: (
            Gated(rows=128, columns=64, depth=64, band=8, warps=8, stages=4),
            Gated(rows=128, columns=64, depth=64, band=8, warps=4, stages=3),
            Gated(rows=64, columns=64, depth=64, band=8, warps=4, stages=4),
        ),
        ANY: (
            Gated(rows=128, columns=128, depth=64, band=8, warps=8, stages=4),
            Gated(rows=128, columns=128, depth=64, band=8, warps=8, stages=3),
            Gated(rows=128, columns=64, depth=64, band=8, warps=4, stages=3),
            Gated(rows=128, columns=64, depth=64, band=8, warps=8, stages=4),
        ),
    }
)
