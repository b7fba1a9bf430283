"""Every kernel in every configuration of the tables, for dtypes and sizes that differ in compiled code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from lib_accel.kernels import configs
from lib_accel.kernels.configs import Entry
from lib_accel.kernels.support import triton_dtype


class Variant(NamedTuple):
    """What Triton compiles one kernel for."""

    room: str  # the module in programs/
    kernel: str
    label: str  # what sets it apart from the kernel's other variants
    pointers: Mapping[str, torch.dtype]
    constants: Mapping[str, Any]  # also pointers that are None
    sizes: str  # "aligned": they divide by 16; "odd": none is known to; "one": those that may be 1 are
    warps: int
    has_bfloat16: bool = False  # which Turing lacks
    stages: int | None = None  # of a pipeline of loads; None leaves that to Triton
    capabilities: tuple[int, ...] = ()  # times ten, that may take it; () for all
    tile: Any = None  # of a table, whole
    dtype: torch.dtype | None = None  # of what goes in
    is_last: bool | None = None  # whether images lie with their channels last; None where there are none


class _Case(NamedTuple):
    """A combination that is compiled for every tile. _CASES has each value of a field with most of others."""

    dtype: torch.dtype
    sizes: str
    is_joined: bool
    has_weight: bool
    has_shift: bool = False  # not where it is joined


_CASES = (
    _Case(torch.float16, "aligned", is_joined=False, has_weight=True, has_shift=True),
    _Case(torch.float16, "odd", is_joined=True, has_weight=False),
    _Case(torch.float16, "one", is_joined=False, has_weight=True),
    _Case(torch.bfloat16, "aligned", is_joined=True, has_weight=True),
    _Case(torch.bfloat16, "one", is_joined=False, has_weight=False, has_shift=True),
    _Case(torch.float32, "aligned", is_joined=True, has_weight=True),
    _Case(torch.float32, "odd", is_joined=False, has_weight=True, has_shift=True),
)

# What registers and shared memory are read of for the tables of GPUs (tabulate.py).
_USUAL = tuple(
    _Case(dtype, "aligned", is_joined=False, has_weight=True) for dtype in (torch.float16, torch.float32)
)

# Which GPUs take which table of linear_geglu.py: Ampere, Ada and consumers' Blackwell; Hopper and Blackwell.
_GATED = (
    (configs.LINEAR_GEGLU, (80, 86, 89, 120)),
    (configs.LINEAR_GEGLU_LARGE, (90, 100)),
)


def variants() -> Iterator[Variant]:
    """All of them: the cases times the tiles of the tables."""
    for case in _CASES:
        yield from _group_norm(case)
        if not case.is_joined or case.dtype is torch.bfloat16:
            yield from _layer_norm(case)
            yield from _geglu(case)
            yield from _bias_residual(case)
            yield from _linear_geglu(case)
            yield from _lora_fuse(case)
    yield from _group_moments()


def usual_variants() -> Iterator[Variant]:
    """Those of one case a dtype, which says what a tile takes of a GPU in most calls."""
    for case in _USUAL:
        for kernel in (_group_norm, _layer_norm, _geglu, _bias_residual, _linear_geglu):
            yield from kernel(case)
    yield from (each for each in _group_moments() if each.sizes == "odd")


def _group_moments() -> Iterator[Variant]:
    for line in _tiles(configs.GROUP_MOMENTS):
        singles = dict.fromkeys(("means", "squares", "mean_out", "scale_out"), torch.float32)
        for sizes in ("odd", "one"):
            label = f"{line}, {sizes}"
            constants = {"BLOCK": line.block}
            yield Variant(
                "group_norm", "group_moments", label, singles, constants, sizes, line.warps, tile=line
            )


def _tiles(table: Mapping[int, tuple[Entry, ...]]) -> list[Entry]:
    """All tiles of a table, each once."""
    return list(dict.fromkeys(tile for tiles in table.values() for tile in tiles))


def _group_norm(case: _Case) -> Iterator[Variant]:
    present = [name for name, has in (("second", case.is_joined), ("shift", case.has_shift)) if has]
    images, image_constants = _tensors(case, ("x",), tuple(present), ("second", "shift"))
    affine, affine_constants = _tensors(case, (), ("weight", "bias") if case.has_weight else (), _AFFINE)
    kept = {"joined": case.dtype} if case.is_joined else {}
    # float16 norms that go on in float16, and float32 ones whose result is narrowed for a convolution.
    written = {"out": torch.bfloat16 if case.dtype is torch.bfloat16 else torch.float16}
    after = {"SILU": True, "NORM": triton_dtype(case.dtype), **affine_constants}
    if not case.is_joined:
        after["joined"] = None
    ending = {**affine, **written, **kept}
    for last in (False, True):
        constants = {"LAST": last, **image_constants}
        for line in _tiles(configs.WHOLE_GROUPS):
            whole = {**constants, **after, "BLOCK": line.block}
            pointers = {**images, **ending}
            yield _variant(case, "group_norm", "whole_groups", line, pointers, whole, last)
        for chunk in _tiles(configs.CHUNKS_CHANNELS_LAST if last else configs.CHUNKS_CHANNELS_FIRST):
            tile = {**constants, "CHANNELS": chunk.channels, "PIXELS": chunk.pixels}
            partial = {**images, "means": torch.float32, "squares": torch.float32}
            yield _variant(case, "group_norm", "partial_moments", chunk, partial, tile, last)
            pointers = {**images, "mean_in": torch.float32, "scale_in": torch.float32, **ending}
            applied = {**tile, **after}
            yield _variant(case, "group_norm", "normalise", chunk, pointers, applied, last)


def _layer_norm(case: _Case) -> Iterator[Variant]:
    affine, constants = _tensors(case, (), ("weight", "bias") if case.has_weight else (), _AFFINE)
    pointers = {"x": case.dtype, "out": case.dtype, **affine}
    for tile in _tiles(configs.WHOLE_ROWS):
        sides = {"ROWS": tile.high, "COLUMNS": tile.wide, **constants}
        yield _variant(case, "layer_norm", "whole_rows", tile, pointers, sides)


def _geglu(case: _Case) -> Iterator[Variant]:
    pointers = {"x": case.dtype, "out": case.dtype}
    for tile in _tiles(configs.GEGLU):
        sides = {"ROWS": tile.high, "COLUMNS": tile.wide}
        yield _variant(case, "geglu", "gated", tile, pointers, sides)


def _bias_residual(case: _Case) -> Iterator[Variant]:
    added = ("bias",) if case.has_weight else ()
    pointers, constants = _tensors(case, ("x", "residual", "out"), added, ("bias",))
    for last in (False, True):
        for tile in _tiles(configs.BIAS_RESIDUAL):
            sides = {"LAST": last, "ROWS": tile.high, "COLUMNS": tile.wide, **constants}
            yield _variant(case, "bias_residual", "added", tile, pointers, sides, last)


def _linear_geglu(case: _Case) -> Iterator[Variant]:
    if case.dtype is torch.float32:
        return
    added = ("bias",) if case.has_weight else ()
    pointers, constants = _tensors(case, ("x", "weight", "out"), added, ("bias",))
    for table, capabilities in _GATED:
        for tile in _tiles(table):
            sides = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "BAND": tile.band}
            more = {"IS_EVEN": case.sizes == "aligned", **constants}
            variant = _variant(case, "linear_geglu", "product_gated", tile, pointers, {**sides, **more})
            yield variant._replace(stages=tile.stages, capabilities=capabilities)


def _lora_fuse(case: _Case) -> Iterator[Variant]:
    tables = {"layers": torch.int64, "pairs": torch.int64}
    for factor in dict.fromkeys((case.dtype, torch.float32)):
        for tile in _tiles(configs.FUSE_SINGLE if factor is torch.float32 else configs.FUSE_HALF):
            constants = {
                "WEIGHT": triton_dtype(case.dtype),
                "FACTOR": triton_dtype(factor),
                "PRECISION": "ieee",
                "HEIGHT": tile.height,
                "WIDTH": tile.width,
                "RANK": tile.rank,
            }
            variant = _variant(case, "lora_fuse", "summed", tile, tables, constants)
            yield variant._replace(label=f"{variant.label}, factors {_short(factor)}")


_AFFINE = ("weight", "bias")


def _variant(
    case: _Case,
    room: str,
    kernel: str,
    tile: Any,
    pointers: Mapping[str, torch.dtype],
    constants: Mapping[str, Any],
    is_last: bool | None = None,
) -> Variant:
    return Variant(
        room,
        kernel,
        _label(case, tile, is_last),
        pointers,
        constants,
        case.sizes,
        tile.warps,
        has_bfloat16=case.dtype is torch.bfloat16,
        tile=tile,
        dtype=case.dtype,
        is_last=is_last,
    )


def _tensors(
    case: _Case, always: tuple[str, ...], present: tuple[str, ...], optional: tuple[str, ...]
) -> tuple[dict[str, torch.dtype], dict[str, None]]:
    """Pointers that are there, and constants for those that are not."""
    absent = [name for name in optional if name not in present]
    return dict.fromkeys((*always, *present), case.dtype), dict.fromkeys(absent)


def _label(case: _Case, tile: object, last: bool | None = None) -> str:
    layout = {None: [], False: ["channels first"], True: ["channels last"]}[last]
    joined = ["two images"] if case.is_joined and last is not None else []
    return ", ".join([str(tile), _short(case.dtype), case.sizes, *layout, *joined])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
