"""Predicted tables: what each kernel's tiles ask of a GPU, and the files that are shipped."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.kernels import __main__ as command
from lib_accel.kernels import (
    bias_residual,
    configs,
    geglu,
    group_norm,
    layer_norm,
    linear_geglu,
    order,
    tabulate,
)
from lib_accel.kernels.ahead_of_time import CAPABILITIES
from lib_accel.kernels.configs import Chunk, Gated, Line, Tile
from lib_accel.kernels.gpus import GPUS, Gpu
from lib_accel.kernels.group_norm import Norm
from lib_accel.kernels.launches import Shape, launches
from lib_accel.kernels.order import FIRST, FOLDER, LAST, key_of, rows_of
from lib_accel.kernels.predict import Launch, Needs
from lib_accel.kernels.tabulate import predicted_us, shapes, tiles
from lib_accel.kernels.variants import usual_variants

HALF, SINGLE = torch.float16, torch.float32
NEEDS = Needs(registers=32, spilled=0, shared=0)
PAPER = Gpu("paper", "paper", 80, 100, clock_mhz=1000, memory_gb_s=1000, l2_mib=40, tensor_tflops=100)
NORM = Norm(32, 1e-5, HALF)

needs_triton = pytest.mark.skipif(
    sys.platform != "linux", reason="requirements-dev.txt has Triton for Linux only"
)


def asked(shape: Shape, tile: Any, gpu: Gpu = PAPER) -> list[Launch]:
    return launches(shape, tile, gpu, lambda *_: NEEDS)


class Anything(dict[Any, Needs]):
    """What every program takes of a GPU."""

    def __missing__(self, key: Any) -> Needs:
        return NEEDS


# What a tile asks for


def test_a_layer_norm_reads_and_writes_its_rows_once() -> None:
    (launch,) = asked(Shape("layer_norm", "", HALF, 2, 4096, 320), Tile(high=8, wide=512, warps=4))
    assert (launch.programs, launch.warps) == (1024, 4)
    assert launch.memory_bytes == launch.cache_bytes == 2 * 2 * 8192 * 320
    assert launch.operations == 12 * 8192 * 512  # lanes beyond the width work as well


def test_geglu_reads_two_values_for_one() -> None:
    (launch,) = asked(Shape("geglu", "", HALF, 2, 64, 1280), Tile(high=16, wide=256, warps=4))
    assert (launch.programs, launch.memory_bytes) == (8 * 5, 3 * 2 * 128 * 1280)


@pytest.mark.parametrize(("kind", "programs"), [(FIRST, 80 * 16), (LAST, 1024 * 2)])
def test_bias_and_residual_are_cut_as_they_lie_in_memory(kind: str, programs: int) -> None:
    shape = Shape("bias_residual", kind, HALF, 2, 4096, 320)
    (launch,) = asked(shape, Tile(high=8, wide=256, warps=4))
    assert (launch.programs, launch.memory_bytes) == (programs, 3 * 2 * 8192 * 320)


def test_a_group_that_stays_in_the_cache_is_read_from_memory_once() -> None:
    shape, line = Shape("group_norm", FIRST, HALF, 2, 4096, 320), Line(block=4096, warps=16)
    size = 2 * 8192 * 320
    (kept,), (lost,) = asked(shape, line), asked(shape, line, PAPER._replace(l2_mib=1))
    assert (kept.programs, kept.memory_bytes, lost.memory_bytes) == (64, 2 * size, 3 * size)
    assert kept.cache_bytes == lost.cache_bytes == 3 * size
    assert lost.waits_us > kept.waits_us == pytest.approx(10 * (0.7 + 0.3) + 0.2)  # ten steps, two reads


def test_short_runs_waste_what_the_cache_gives() -> None:
    line = Line(block=4096, warps=16)
    first, last = (asked(Shape("group_norm", kind, HALF, 2, 4096, 320), line)[0] for kind in (FIRST, LAST))
    # Runs of ten channels, 20 bytes: of those that begin anywhere, 48 of the cache's bytes are touched.
    assert last.cache_bytes / first.cache_bytes == pytest.approx(48 / 20)


def test_a_split_group_norm_is_three_launches() -> None:
    chunk = Chunk(channels=64, pixels=32, per_chunk=128, warps=4)
    partial, whole, norm = asked(Shape("group_norm", LAST, HALF, 2, 4096, 320), chunk)
    assert [partial.programs, whole.programs, norm.programs] == [2 * 5 * 32, 64, 2 * 5 * 128]
    assert partial.waits_us == pytest.approx(4 * 0.7 + 0.2)  # four steps
    assert [partial.memory_bytes, whole.memory_bytes, norm.memory_bytes] == [5242880, 0, 5242880]


def test_an_image_that_the_cache_does_not_hold_is_read_twice() -> None:
    chunk, shape = Chunk(64, 32, 1024, 4), Shape("group_norm", LAST, SINGLE, 1, 1048576, 128)
    assert sum(each.memory_bytes for each in asked(shape, chunk)) == 3 * shape.size_bytes


def test_a_gated_product_counts_its_products_and_loads() -> None:
    tile = Gated(rows=128, columns=64, depth=32, band=8, warps=4, stages=4)
    (launch,) = asked(Shape("linear_geglu", "", HALF, 2, 1024, 640), tile)
    assert launch.programs == 16 * 40
    assert launch.flop == 2 * 2048 * 640 * 5120
    assert launch.memory_bytes == 2 * (2048 * 640 * 5 + 640 * 5120)
    assert launch.cache_bytes == 640 * 2 * (20 * 32 * (128 + 2 * 64) + 128 * 64)
    assert launch.shared_bytes == 640 * 20 * 32 * 2 * 4 * (64 + 64)  # warps of 64 rows and twice 32 columns


def test_a_weight_that_the_cache_does_not_hold_is_read_once_a_band() -> None:
    tile = Gated(rows=128, columns=64, depth=32, band=8, warps=4, stages=4)
    shape = Shape("linear_geglu", "", HALF, 2, 1024, 640)
    (launch,) = asked(shape, tile, PAPER._replace(l2_mib=1))
    assert launch.memory_bytes == 2 * (2048 * 640 * 5 + 2 * 640 * 5120)


def test_four_warps_of_hopper_read_the_columns_together() -> None:
    tile = Gated(rows=128, columns=64, depth=64, band=8, warps=8, stages=4)
    hopper = next(gpu for gpu in GPUS if gpu.capability == 90)
    (launch,) = asked(Shape("linear_geglu", "", HALF, 2, 1024, 640), tile, hopper)
    assert launch.shared_bytes == 640 * 10 * 64 * 2 * (128 + 2 * 2 * 64)


# Tables


def test_a_tile_that_spills_has_no_time() -> None:
    known = {("gated", tile, HALF, None): NEEDS for tile in configs.GEGLU[configs.ANY]}
    known["gated", configs.GEGLU[configs.ANY][1], HALF, None] = NEEDS._replace(spilled=4)
    found = predicted_us(Shape("geglu", "", HALF, 2, 4096, 1280), PAPER, known)
    assert list(found)[-1] == key_of(configs.GEGLU[configs.ANY][1])
    assert [us is None for us in found.values()] == [False] * 3 + [True]


def test_the_best_tile_comes_first() -> None:
    for shape in shapes(80):
        times = [us for us in predicted_us(shape, PAPER, Anything()).values() if us is not None]
        assert times == sorted(times)


def _offered(shape: Shape) -> Any:
    if shape.kind:
        form = torch.contiguous_format if shape.kind == FIRST else torch.channels_last
        sizes = shape.batch, shape.channels, shape.positions, 1
        image = torch.empty(sizes, dtype=shape.dtype, device="meta", memory_format=form)
        if shape.kernel == "group_norm":
            return group_norm.candidates(image, None, None, NORM)
        return bias_residual.candidates(image, None, image)
    width = 2 * shape.channels if shape.kernel == "geglu" else shape.channels
    tokens = torch.empty(shape.batch, shape.positions, width, dtype=shape.dtype, device="meta")
    if shape.kernel == "linear_geglu":
        return linear_geglu.candidates(tokens, tokens[0], None)
    if shape.kernel == "geglu":
        return geglu.candidates(tokens)
    return layer_norm.candidates(tokens, None, None, HALF)


def test_tables_have_the_tiles_that_kernels_offer() -> None:
    for shape in shapes(80):
        assert tuple(tiles(shape, 80)) == tuple(_offered(shape)), shape
    shape = next(each for each in shapes(90) if each.kernel == "linear_geglu")
    assert tiles(shape, 90) == configs.candidates(configs.LINEAR_GEGLU_LARGE, 8192)
    assert all(each.kernel != "linear_geglu" for each in shapes(75))


@needs_triton
def test_what_a_table_needs_is_compiled() -> None:
    programs = {(each.kernel, each.tile, each.dtype, each.is_last) for each in usual_variants()}
    asked_for: set[Any] = set()

    class Noting(Anything):
        def __getitem__(self, key: Any) -> Needs:
            asked_for.add(key)
            return NEEDS

    for capability in CAPABILITIES:
        gpu = next(gpu for gpu in GPUS if gpu.capability == capability)
        tabulate.table(gpu, Noting())
    assert asked_for <= programs
    assert len(asked_for) > 60


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_every_gpu_has_a_table_of_all_shapes_with_the_tiles_of_today(gpu: Gpu) -> None:
    rows = {row.case: row.us for row in rows_of(gpu)}
    wanted: Mapping[Any, set[str]] = {
        shape.case: {*map(key_of, tiles(shape, gpu.capability))} for shape in shapes(gpu.capability)
    }
    assert {case: {*us} for case, us in rows.items()} == wanted


def test_files_are_those_of_gpus_and_are_installed() -> None:
    names = {file.name for file in FOLDER.iterdir()}
    assert names == {f"{gpu.slug}.json" for gpu in GPUS}
    project = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text("utf-8")
    assert re.search(r'"lib_accel.kernels" = \["tables/\*\.json"\]', project)


def test_no_time_is_below_the_floor() -> None:
    for gpu in GPUS:
        least = {shape.case: 2 * shape.size_bytes / gpu.memory_gb_s / 1e3 for shape in shapes(gpu.capability)}
        for row in rows_of(gpu):
            assert all(us is None or us > 0.99 * least[row.case] for us in row.us.values()), (gpu.name, row)


@needs_triton
def test_command_writes_the_tables_of_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tabulate, "needs", lambda capability: Anything())
    assert command.main(["tables", "--capability", "90", "100", "--to", str(tmp_path)]) == 0
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["b200.json", "h100-pcie.json", "h100-sxm.json", "h200.json"]
    assert capsys.readouterr().out.count("written: ") == 4
    monkeypatch.setattr(order, "FOLDER", tmp_path)
    b200 = next(gpu for gpu in GPUS if gpu.name == "B200")
    written = order._read(order.file_of(b200, is_measured=False), b200)
    assert {row.case for row in written} == {shape.case for shape in shapes(100)}


@needs_triton
def test_needs_are_those_of_the_compiled_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [each for each in usual_variants() if each.kernel == "gated"][:1]
    monkeypatch.setattr(tabulate, "usual_variants", lambda: some)
    ((key, found),) = tabulate.needs(80).items()
    assert key == ("gated", configs.GEGLU[128][0], HALF, None)
    assert found.registers > 0
    assert not found.spilled


def test_waits_of_a_pipeline_are_shared_by_what_is_on_its_way() -> None:
    shape = Shape("linear_geglu", "", HALF, 2, 1024, 640)
    two, four = (asked(shape, Gated(128, 64, 32, 8, 4, stages))[0].waits_us for stages in (2, 4))
    assert math.isclose(two - 0.7, 3 * (four - 0.7))
