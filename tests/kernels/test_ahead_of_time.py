"""Every kernel compiles for every supported GPU, in every configuration, and fits into its registers."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from lib_accel.kernels import __main__ as command
from lib_accel.kernels import ahead_of_time, configs
from lib_accel.kernels.ahead_of_time import CAPABILITIES, SHARED_LIMIT, Built, Needs, build, can_build
from lib_accel.kernels.variants import Variant, variants

# Not on a machine without Triton; on Linux its absence is a failure, as requirements-dev.txt has it.
needs_triton = pytest.mark.skipif(
    sys.platform != "linux", reason="requirements-dev.txt has Triton for Linux only"
)

PROGRAMS = Path(ahead_of_time.__file__).parent / "programs"


def assert_fits(built: Built) -> None:
    assert built.needs.registers > 0, built
    assert built.needs.spilled == 0, built
    assert built.needs.shared <= SHARED_LIMIT, built


def first_of_each_kernel() -> list[Variant]:
    found: dict[tuple[str, str], Variant] = {}
    for variant in variants():
        found.setdefault((variant.room, variant.kernel), variant)
    return list(found.values())


@needs_triton
def test_one_variant_of_each_kernel_fits() -> None:
    for built in build(first_of_each_kernel(), 75):
        assert_fits(built)


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
    assert command.is_heavy(built)


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
def test_every_entry_of_every_table_has_variants() -> None:
    entries = [
        (table, entry)
        for table, value in vars(configs).items()
        if table.isupper() and isinstance(value, tuple)
        for entry in value
    ]
    compiled = [({*map(str, each.constants.values())}, each.warps) for each in variants()]
    missing = [
        (table, entry)
        for table, entry in entries
        if not any({*map(str, sizes(entry))} <= values and entry.warps == warps for values, warps in compiled)
    ]
    assert len(entries) > 15
    assert not missing


def sizes(entry: tuple[int, ...]) -> list[int]:
    """The sides of a tile: what is compiled in. A class's limit and the pixels of a chunk are not."""
    return [value for name, value in entry._asdict().items() if name not in ("up_to", "per_chunk", "warps")]


def test_bfloat16_is_left_out_on_turing() -> None:
    plain = Variant("a", "b", "", {}, {}, "odd", 4)
    assert can_build(plain, 75)
    assert not can_build(plain._replace(has_bfloat16=True), 75)
    assert can_build(plain._replace(has_bfloat16=True), 80)


def test_classes_of_shapes_are_in_order_and_none_is_left_out() -> None:
    for table in (
        value for name, value in vars(configs).items() if name.isupper() and isinstance(value, tuple)
    ):
        limits = [entry.up_to for entry in table]
        assert limits == sorted(set(limits))
        for limit in limits:
            assert configs.pick(table, limit).up_to == limit
    assert configs.pick(configs.WHOLE_ROWS, 257).up_to == 512


def test_a_class_of_lines_fits_its_tile() -> None:
    assert all(tile.wide >= tile.up_to for tile in configs.WHOLE_ROWS)


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
