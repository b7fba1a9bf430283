"""What each kernel asks of a GPU with one of its tiles: its launches, as predict.py takes them.

One function a kernel, beside its grid and its loops: a change of those is a change here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from lib_accel.kernels import configs
from lib_accel.kernels.configs import Chunk, Gated, Line, Tile
from lib_accel.kernels.gpus import Gpu
from lib_accel.kernels.order import FIRST, LAST, Case
from lib_accel.kernels.predict import (
    CACHE_WAIT_US,
    MEMORY_WAIT_US,
    REDUCTION_WAIT_US,
    Launch,
    Needs,
    resident,
)

_GROUPS = 32  # of every group norm of these models
_SECTOR = 32  # bytes that the L2 cache gives at least

# Float32 operations for a value, as the kernels' source has them: sums of a norm, the norm itself with its
# SiLU; a layer norm; a gate, whose erf is most of it; two additions.
_MOMENTS, _NORMALISED, _LAYER_NORM, _GATE, _ADDED = 10, 20, 12, 40, 6


class Shape(NamedTuple):
    """One call of a kernel."""

    kernel: str
    kind: str  # see order.Case
    dtype: torch.dtype
    batch: int
    positions: int  # of each of the batch: tokens, or pixels
    channels: int  # of a result of geglu, of what goes into any other

    @property
    def case(self) -> Case:
        """As tables are asked for it."""
        return Case(self.kernel, self.kind, self.dtype, self.batch * self.positions, self.channels)

    @property
    def size_bytes(self) -> int:
        """Of the image, or of the tokens."""
        return self.batch * self.positions * self.channels * self.dtype.itemsize


Read = Callable[[str, Any], Needs]  # of a program, by its name and tile


def launches(shape: Shape, tile: Any, gpu: Gpu, read: Read) -> list[Launch]:
    """What the call launches with that tile, one after the other."""
    return _LAUNCHES[shape.kernel](shape, tile, gpu, read)


def _group_norm(shape: Shape, tile: Line | Chunk, gpu: Gpu, read: Read) -> list[Launch]:
    if isinstance(tile, Line):
        return _whole(shape, tile, gpu, read)
    return _split(shape, tile, gpu, read)


def _whole(shape: Shape, line: Line, gpu: Gpu, read: Read) -> list[Launch]:
    """One program a group, which it reads twice."""
    needs, size = read("whole_groups", line), shape.size_bytes
    width, programs = shape.channels // _GROUPS, shape.batch * _GROUPS
    steps = _ceil(width * shape.positions, line.block)
    there = min(programs, gpu.processors * max(resident(gpu, line.warps, needs), 1))
    again = _again(there * size / programs, gpu)
    run = width * shape.dtype.itemsize if shape.kind == LAST else _SECTOR
    return [
        Launch(
            programs,
            line.warps,
            needs,
            memory_bytes=2 * size + (0 if again == CACHE_WAIT_US else size),
            cache_bytes=3 * size * _waste(run),
            waits_us=steps * (MEMORY_WAIT_US + again) + 2 * REDUCTION_WAIT_US,
            operations=programs * steps * line.block * (_MOMENTS + _NORMALISED),
        )
    ]


def _split(shape: Shape, chunk: Chunk, gpu: Gpu, read: Read) -> list[Launch]:
    """Sums of chunks, sums of groups, and the norm, which reads the image once more."""
    blocks = shape.batch * _ceil(shape.channels, chunk.channels)
    chunks, tiles = _ceil(shape.positions, chunk.per_chunk), _ceil(shape.positions, chunk.pixels)
    steps = _ceil(min(chunk.per_chunk, shape.positions), chunk.pixels)
    parts = shape.channels // _GROUPS * chunks
    line = configs.pick(configs.GROUP_MOMENTS, parts)
    size, held, partial = shape.size_bytes, chunk.channels * chunk.pixels, 8 * shape.batch * _GROUPS * parts
    again = _again(size, gpu)
    read_again = 0 if again == CACHE_WAIT_US else size
    return [
        Launch(
            blocks * chunks,
            chunk.warps,
            read("partial_moments", chunk),
            memory_bytes=size,
            cache_bytes=size + partial,
            waits_us=steps * MEMORY_WAIT_US + 2 * REDUCTION_WAIT_US,
            operations=blocks * chunks * steps * held * _MOMENTS,
        ),
        Launch(
            shape.batch * _GROUPS,
            line.warps,
            read("group_moments", line),
            memory_bytes=0,
            cache_bytes=2 * partial,
            waits_us=2 * (_ceil(parts, line.block) * CACHE_WAIT_US + REDUCTION_WAIT_US),
            operations=2 * shape.batch * _GROUPS * _ceil(parts, line.block) * line.block * _MOMENTS,
        ),
        Launch(
            blocks * tiles,
            chunk.warps,
            read("normalise", chunk),
            memory_bytes=size + read_again,
            cache_bytes=2 * size,
            waits_us=max(again, CACHE_WAIT_US),
            operations=blocks * tiles * held * _NORMALISED,
        ),
    ]


def _layer_norm(shape: Shape, tile: Tile, gpu: Gpu, read: Read) -> list[Launch]:
    programs = _ceil(shape.batch * shape.positions, tile.high)
    waits_us = MEMORY_WAIT_US + 2 * REDUCTION_WAIT_US
    return [_once(programs, tile, read("whole_rows", tile), 2 * shape.size_bytes, waits_us, _LAYER_NORM)]


def _geglu(shape: Shape, tile: Tile, gpu: Gpu, read: Read) -> list[Launch]:
    programs = _ceil(shape.batch * shape.positions, tile.high) * _ceil(shape.channels, tile.wide)
    return [_once(programs, tile, read("gated", tile), 3 * shape.size_bytes, MEMORY_WAIT_US, _GATE)]


def _bias_residual(shape: Shape, tile: Tile, gpu: Gpu, read: Read) -> list[Launch]:
    rows, columns = shape.batch * shape.positions, shape.channels
    if shape.kind == FIRST:
        rows, columns = shape.batch * shape.channels, shape.positions
    programs = _ceil(rows, tile.high) * _ceil(columns, tile.wide)
    return [_once(programs, tile, read("added", tile), 3 * shape.size_bytes, MEMORY_WAIT_US, _ADDED)]


def _once(programs: int, tile: Tile, needs: Needs, size: int, waits_us: float, operations: int) -> Launch:
    """A launch whose programs read a tile each, at one blow."""
    lanes = programs * tile.high * tile.wide
    return Launch(programs, tile.warps, needs, size, size, waits_us, lanes * operations)


def _linear_geglu(shape: Shape, tile: Gated, gpu: Gpu, read: Read) -> list[Launch]:
    """A product with a weight of 8 * channels rows, of which each tile takes two parts."""
    item, inner = shape.dtype.itemsize, 4 * shape.channels
    down, across = _ceil(shape.batch * shape.positions, tile.rows), _ceil(inner, tile.columns)
    steps, programs = _ceil(shape.channels, tile.depth), down * across
    weight = 2 * inner * shape.channels * item
    # Programs of a band run side by side, and read the weight from the cache if that holds it till the next.
    reads = 1 if weight + shape.size_bytes <= gpu.l2_mib * 2**20 else _ceil(down, tile.band)
    loaded = steps * tile.depth * (tile.rows + 2 * tile.columns) * item
    written = tile.rows * tile.columns
    return [
        Launch(
            programs,
            tile.warps,
            read("product_gated", tile),
            memory_bytes=5 * shape.size_bytes + reads * weight,
            cache_bytes=programs * (loaded + written * item),
            waits_us=MEMORY_WAIT_US + steps * CACHE_WAIT_US / max(tile.stages - 1, 1),
            operations=programs * written * _GATE,
            flop=4.0 * programs * written * steps * tile.depth,
            shared_bytes=programs * steps * tile.depth * item * _fed(tile, gpu),
        )
    ]


def _fed(tile: Gated, gpu: Gpu) -> float:
    """Rows and columns that tensor cores read from shared memory for one channel, by all warps together."""
    if gpu.processor.reads_shared:  # four warps at once, which split the rows
        return tile.rows + 2 * tile.columns * max(tile.warps // 4, 1)
    splits = [each for each in (1, 2, 4, 8, 16, 32) if tile.warps % each == 0]
    return min(tile.warps * (tile.rows / n + 2 * tile.columns / (tile.warps // n)) for n in splits)


def _again(size_bytes: float, gpu: Gpu) -> float:
    """What a second read waits for, after so many bytes: those stay in the cache, or do not."""
    return CACHE_WAIT_US if size_bytes <= gpu.l2_mib * 2**20 else MEMORY_WAIT_US


def _waste(run: int) -> float:
    """Bytes that the cache gives for each that is wanted, of runs that begin anywhere."""
    return 1.0 if run % _SECTOR == 0 else (run + _SECTOR - math.gcd(run, _SECTOR)) / run


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


_LAUNCHES: Mapping[str, Callable[[Shape, Any, Gpu, Read], list[Launch]]] = MappingProxyType(
    {
        "group_norm": _group_norm,
        "layer_norm": _layer_norm,
        "geglu": _geglu,
        "bias_residual": _bias_residual,
        "linear_geglu": _linear_geglu,
    }
)
