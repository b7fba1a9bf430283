"""Every kernel compiles for every supported GPU, in every configuration, and fits into its registers."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib_accel.kernels import __main__ as command
from lib_accel.kernels import ahead_of_time, configs
from lib_accel.kernels.ahead_of_time import (
    CAPABILITIES,
    LARGEST_SHARED,
    SHARED_LIMIT,
    Built,
    Needs,
    build,
    can_build,
    is_heavy,
)
from lib_accel.kernels.variants import Variant, variants

# Not on a machine without Triton; on Linux its absence is a failure, as requirements-dev.txt has it.
needs_triton = pytest.mark.skipif(
    sys.platform != "linux", reason="requirements-dev.txt has Triton for Linux only"
)

# What of configs.py is no table.
NUMBERS = {"ANY", "WHOLE_UP_TO", "SPLIT_FROM"}

PROGRAMS = Path(ahead_of_time.__file__).parent / "programs"


def assert_fits(built: Built) -> None:
    assert built.needs.registers > 0, built
    assert not is_heavy(built), built


def first_of_each_kernel() -> list[Variant]:
    found: dict[tuple[str, str], Variant] = {}
    for variant in variants():
        found.setdefault((variant.room, variant.kernel), variant)
    return list(found.values())


@needs_triton
def test_one_variant_of_each_kernel_fits() -> None:
    firsts = first_of_each_kernel()
    oldest = [min(each.capabilities, default=75) for each in firsts]
    done = [
        built for each, capability in zip(firsts, oldest, strict=True) for built in build([each], capability)
    ]
    assert [assert_fits(built) for built in done] == [None] * len(firsts)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_variant_fits(capability: int) -> None:
    done = [built for built in build(variants(), capability) if assert_fits(built) is None]
    assert len(done) == sum(can_build(variant, capability) for variant in variants())


@needs_triton
def test_spilling_is_seen() -> None:
    (variant,) = [each for each in first_of_each_kernel() if each.kernel == "whole_rows"]
    huge = variant._replace(constants={**variant.constants, "ROWS": 64, "COLUMNS": 1024})
    (built,) = build([huge], 75)
    assert built.needs.spilled > 0
    assert is_heavy(built)


def test_only_a_pipeline_may_take_what_a_gpu_has_of_shared_memory() -> None:
    plain = Variant("a", "b", "", {}, {}, "odd", 4)
    for variant, limit in ((plain, SHARED_LIMIT), (plain._replace(stages=3), LARGEST_SHARED[86])):
        assert not is_heavy(Built(variant, 86, Needs(32, 0, limit)))
        assert is_heavy(Built(variant, 86, Needs(32, 0, limit + 1)))
    assert set(LARGEST_SHARED) == set(CAPABILITIES)


@needs_triton
def test_what_a_kernel_asks_of_its_sizes_is_known_to_the_compiler() -> None:
    (variant,) = [each for each in first_of_each_kernel() if each.kernel == "product_gated"]
    # Loads of 16 bytes go straight to shared memory, several on their way at a time; shorter ones do not.
    aligned, odd = build([variant, variant._replace(sizes="odd")], 80)
    assert odd.needs.shared == aligned.needs.shared


@needs_triton
def test_every_kernel_has_variants() -> None:
    launched = {
        (file.stem, node.name)
        for file in PROGRAMS.glob("[a-z]*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and "tl.program_id" in ast.unparse(node)
    }
    assert {(variant.room, variant.kernel) for variant in variants()} == launched


@needs_triton
def test_every_tile_of_every_table_has_variants() -> None:
    tiles = [(name, tile) for name, table in tables().items() for some in table.values() for tile in some]
    compiled = [({*map(str, each.constants.values())}, each.warps, each.stages) for each in variants()]
    missing = [
        (name, tile)
        for name, tile in tiles
        if not any(
            {*map(str, sizes(tile))} <= values and [tile.warps, getattr(tile, "stages", None)] == rest
            for values, *rest in compiled
        )
    ]
    assert len(tiles) > 50
    assert not missing


def tables() -> dict[str, Mapping[int, tuple[Any, ...]]]:
    return {name: value for name, value in vars(configs).items() if name.isupper() and name not in NUMBERS}


def sizes(tile: Any) -> list[int]:
    """The sides of a tile: what is compiled in. The pixels of a chunk are not."""
    return [value for name, value in tile._asdict().items() if name not in ("per_chunk", "warps", "stages")]


def test_every_gpu_is_told_which_tiles_of_a_pipeline_it_takes() -> None:
    told = {each.capabilities for each in variants() if each.stages}
    assert sorted(number for some in told for number in some) == [each for each in CAPABILITIES if each > 75]


def test_bfloat16_is_left_out_on_turing() -> None:
    plain = Variant("a", "b", "", {}, {}, "odd", 4)
    assert can_build(plain, 75)
    assert not can_build(plain._replace(has_bfloat16=True), 75)
    assert can_build(plain._replace(has_bfloat16=True), 80)


def test_what_is_meant_for_some_gpus_is_built_for_those_alone() -> None:
    some = Variant("a", "b", "", {}, {}, "odd", 4, capabilities=(90, 100))
    assert [each for each in CAPABILITIES if can_build(some, each)] == [90, 100]


def test_classes_of_shapes_are_in_order_and_none_is_left_out() -> None:
    for table in tables().values():
        limits = list(table)
        assert limits == sorted(limits)
        for limit in limits:
            assert configs.pick(table, limit) == table[limit][0]
            assert configs.candidates(table, limit) == table[limit]
    assert configs.pick(configs.WHOLE_ROWS, 257).wide == 512


def test_a_class_has_few_tiles_and_each_once() -> None:
    for table in tables().values():
        assert all(1 <= len({*map(repr, tiles)}) == len(tiles) <= 5 for tiles in table.values())


def test_a_class_of_lines_fits_its_tiles() -> None:
    assert all(tile.wide >= up_to for up_to, tiles in configs.WHOLE_ROWS.items() for tile in tiles)


@needs_triton
def test_command_prints_a_table_and_fails_if_one_spills(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = first_of_each_kernel()[0]
    for spilled, status in ((0, 0), (8, 1)):
        built = Built(variant, 80, Needs(32, spilled, 16))
        monkeypatch.setattr(command, "build", lambda given, capability, built=built: [built])
        assert command.main(["--capability", "80"]) == status
        rows = capsys.readouterr().out.splitlines()
        assert rows[1].split()[:5] == ["80", "32", str(spilled), "16", "group_norm.whole_groups:"]
        assert rows[2].startswith(f"{status} spill")


def test_command_without_triton_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "why_not_triton", lambda: ("Triton is not installed",))
    assert command.main([]) == 2
    assert "Triton is not installed" in capsys.readouterr().err
