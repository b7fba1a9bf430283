"""In which order a GPU's tiles are tried, and which are left out: by tables that are shipped, one file a GPU.

A table has microseconds of each tile at the shapes of usual models. Those of `NAME.json` are predicted
(predict.py); where `NAME.measured.json` has the same row, that holds. A GPU without a table, and a kernel
that has no row, keep the order of configs.py, which is the same for all.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch

from lib_accel.kernels.gpus import Gpu, gpu_on

_log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "tables"
SCHEMA = 1
PREDICTED, MEASURED = "predicted", "measured"  # what a table says of itself

FIRST, LAST = "channels first", "channels last"  # kinds; tokens lie as images do whose channels come last

# How many times the best tile's time another may take and still be tried, and how many are tried at least.
REACH, FEWEST = 1.5, 2

# Share of the best tile's time below which a difference says nothing: those stay in their usual order.
_ALIKE = 0.02

# By how many powers of two a shape may differ from a row that is to leave out tiles, and not order them only.
_NEAR = 2.0

# What costs alike.
_SAME_ROWS: Mapping[torch.dtype, torch.dtype] = MappingProxyType({torch.bfloat16: torch.float16})

_BETWEEN = " / "  # kernel, kind and dtype in a file
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32)
}

T = TypeVar("T", bound=tuple[int, ...])


class Case(NamedTuple):
    """A call of a kernel, as tables know it."""

    kernel: str  # its file in this room
    kind: str  # FIRST or LAST; "" where there is one only
    dtype: torch.dtype  # of what goes in
    positions: int  # tokens or pixels of the whole batch, which vary from picture to picture
    channels: int  # that each of them has


class Row(NamedTuple):
    """The times of a kernel's tiles at one shape."""

    case: Case
    us: Mapping[str, float | None]  # by `key_of` a tile; None for one that cannot be had
    is_measured: bool


def content_of(gpu: Gpu, source: str, rows: Iterable[Row]) -> dict[str, Any]:
    """What a GPU's file holds, of rows that are all predicted, or all measured."""
    us: dict[str, dict[str, Any]] = {}
    for case, times, _ in rows:
        name = _BETWEEN.join((case.kernel, case.kind, str(case.dtype).removeprefix("torch.")))
        kept = {tile: None if each is None else float(f"{each:.3g}") for tile, each in times.items()}
        us.setdefault(name, {})[f"{case.positions}x{case.channels}"] = kept
    return {"schema": SCHEMA, "gpu": gpu.name, "source": source, "us": us}


def text_of(content: Mapping[str, Any]) -> str:
    """A file's content as JSON with a line a shape."""
    kernels = (
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(f" {json.dumps(size)}: {json.dumps(us)}" for size, us in sizes.items())
        + "}"
        for name, sizes in content["us"].items()
    )
    head = json.dumps({key: value for key, value in content.items() if key != "us"})
    return f'{head[:-1]}, "us": {{\n' + ",\n".join(kernels) + "\n}}\n"


def key_of(tile: Sequence[int]) -> str:
    """What a tile goes by in a table: its sizes in their order."""
    return "x".join(map(str, tile))


def in_order(tiles: Sequence[T], case: Case, device: torch.device) -> Sequence[T]:
    """The tiles that are to be tried on a device, its own first; as they are where nothing is known of it.

    It depends on what of a call is part of its size class (tuning.signature), so that all calls of a class
    are offered the same.
    """
    gpu = gpu_on(device)
    row = None if gpu is None else nearest(gpu, case)
    return tiles if row is None else _arranged(tiles, row, case)


@lru_cache(maxsize=4096)
def nearest(gpu: Gpu, case: Case) -> Row | None:
    """The row of the nearest shape; None if the GPU's table has none of that kernel, kind and dtype."""
    wanted = case._replace(dtype=_SAME_ROWS.get(case.dtype, case.dtype))
    rows = [row for row in rows_of(gpu) if row.case[:3] == wanted[:3]]
    return min(rows, key=lambda row: _apart(row.case, case), default=None)


def exact(gpu: Gpu, case: Case) -> Row | None:
    """The predicted row of that very shape, if there is one."""
    found = (row for row in _read(file_of(gpu, is_measured=False), gpu) if row.case == case)
    return next(found, None)


@cache
def rows_of(gpu: Gpu) -> tuple[Row, ...]:
    """All rows of a GPU's tables; a measured one in the place of that which was predicted."""
    rows = {
        row.case: row
        for is_measured in (False, True)
        for row in _read(file_of(gpu, is_measured=is_measured), gpu)
    }
    return tuple(rows.values())


def _arranged(tiles: Sequence[T], row: Row, case: Case) -> Sequence[T]:
    """Best first; tiles that the row does not know come last, and are never left out."""
    known = [(tile, us) for tile in tiles if (us := row.us.get(key_of(tile))) is not None]
    if not known:
        return tiles
    best = min(us for _, us in known)
    known.sort(key=lambda pair: int((pair[1] / best - 1) / _ALIKE))
    tried = len(known)
    if _apart(row.case, case) <= _NEAR:
        tried = max(FEWEST, sum(us <= REACH * best for _, us in known))
    rest = [tile for tile in tiles if key_of(tile) not in row.us]
    return (*(tile for tile, _ in known[:tried]), *rest)


def _apart(row: Case, case: Case) -> float:
    """By how many powers of two the sizes differ; positions by the nearest one, as size classes have them."""
    positions = round(math.log2(max(case.positions, 1))) - math.log2(row.positions)
    return abs(positions) + abs(math.log2(max(case.channels, 1) / row.channels))


def file_of(gpu: Gpu, *, is_measured: bool) -> Path:
    """Where a GPU's table is."""
    return FOLDER / f"{gpu.slug}{'.measured' if is_measured else ''}.json"


@cache
def _read(file: Path, gpu: Gpu) -> tuple[Row, ...]:
    """The rows of a file; none if it is missing or broken, which is logged."""
    try:
        content = json.loads(file.read_text("utf-8"))
        if (content["schema"], content["gpu"]) != (SCHEMA, gpu.name):
            raise ValueError(f"it is of schema {content['schema']} for {content['gpu']}")
        is_measured = content["source"] == MEASURED
        return tuple(
            _row(name, size, us, is_measured)
            for name, sizes in content["us"].items()
            for size, us in sizes.items()
        )
    except FileNotFoundError:
        _log.debug("no table of tiles: %s", file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("tiles stay in their usual order: %s: %s: %s", file, type(error).__name__, error)
    return ()


def _row(name: str, size: str, us: Mapping[str, float | None], is_measured: bool) -> Row:
    kernel, kind, dtype = name.split(_BETWEEN)
    positions, channels = map(int, size.split("x"))
    case = Case(kernel, kind, _DTYPES[dtype], positions, channels)
    times = {tile: None if each is None else float(each) for tile, each in us.items()}
    if min(positions, channels) < 1 or any(each is not None and not each > 0 for each in times.values()):
        raise ValueError(f"{name}, {size}: sizes and times are more than nothing")
    return Row(case, times, is_measured)
