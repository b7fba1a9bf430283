"""The kernels in the suite of GPUs: what they are held against, how they are timed, tuned and told."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.bench.gpu import kernels_rows as rows
from lib_accel.bench.gpu import kernels_subjects
from lib_accel.bench.gpu.file import DONE
from lib_accel.bench.gpu.kernels_cases import predicted_ms
from lib_accel.bench.gpu.kernels_rows import KernelStand, chosen_way, distance, kernel_row, replayed, timed
from lib_accel.bench.gpu.kernels_shapes import SHAPES, SINGLE_SILU, Shape, toy_of
from lib_accel.bench.gpu.kernels_subjects import subject_of
from lib_accel.bench.gpu.kernels_tuning import neighbours, tuning_row
from lib_accel.bench.gpu.models import Where
from lib_accel.bench.gpu.parts import KERNEL, KERNEL_COMPILED, KERNELS, PARTS, TUNING, Case
from lib_accel.bench.gpu.sides import Makers, SideError
from lib_accel.bench.gpu.table import gpu_table
from lib_accel.bench.gpu.timing import DRY, Pace
from lib_accel.graphs.recorder import Recorder
from lib_accel.kernels import configs
from lib_accel.kernels.gpus import GPUS
from lib_accel.kernels.tolerance import Tolerance

CPU = torch.device("cpu")
TOY = Where(CPU, torch.float32, False, True)
ROOT = Path(__file__).resolve().parent.parent.parent.parent

# One shape a kernel and way to use it.
KINDS = {
    f"{shape.kernel}, {shape.norm}, {shape.is_last}, {shape.readers}": (name, shape)
    for name, shape in SHAPES.items()
}
EACH = pytest.mark.parametrize(("name", "shape"), KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def _not_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def stand_of(kernel: str, where: Where = TOY, pace: Pace = DRY) -> KernelStand:
    name = next(name for name, shape in SHAPES.items() if shape.kernel == kernel)
    return KernelStand(Case(name, kernel), where, pace, Makers(others="eager"))


# What is measured


def test_every_kernel_of_the_room_has_shapes_of_its_own() -> None:
    programs = {path.stem for path in (ROOT / "lib_accel/kernels/programs").glob("[a-z]*.py")}
    assert programs <= {shape.kernel for shape in SHAPES.values()}
    assert len(SHAPES) == len(set(SHAPES.values()))  # no name hides another shape
    assert [case.name for case in PARTS["kernels"].cases] == list(SHAPES)


@EACH
def test_plain_torch_and_reference_are_as_near_to_float64_as_the_kernels_table_asks(
    name: str, shape: Shape
) -> None:
    stand = KernelStand(Case(name, shape.kernel), TOY, DRY, Makers())
    assert 0 < stand.tolerance_share(stand.subject.plain) <= 1
    assert 0 < stand.tolerance_share(stand.subject.reference) <= 1


@EACH
def test_the_least_bytes_are_those_of_all_inputs_and_results_once(name: str, shape: Shape) -> None:
    subject = subject_of(toy_of(shape), CPU)
    given = _tensors(subject.inputs)
    # In the place of an input that is only written, or beside all of them.
    results = {id(each): each for each in (*given, *subject.reference(*subject.inputs))}
    assert subject.least_bytes == sum(each.nbytes for each in results.values())


def test_under_autocast_each_reader_of_a_norm_casts_for_itself_and_the_norms_dtype_is_float32() -> None:
    three = next(shape for shape in SHAPES.values() if shape.readers == 3)
    stands = [subject_of(toy_of(shape), CPU) for shape in (three._replace(readers=1), three)]
    one, all_three = ({id(each) for each in stand.plain(*stand.inputs)} for stand in stands)
    assert (len(one), len(all_three)) == (1, 3)
    use = next(shape for shape in SHAPES.values() if shape.norm == SINGLE_SILU)
    x, weight, bias = (subject := subject_of(toy_of(use), CPU)).inputs
    wide = F.silu(F.group_norm(x.float(), 32, weight.float(), bias.float(), 1e-6))
    assert torch.equal(subject.plain(*subject.inputs)[0], wide.half())


def test_images_of_channels_last_stay_so_in_all_sets() -> None:
    name = next(name for name, shape in SHAPES.items() if shape.is_last)
    stand = KernelStand(Case(name, "group_norm"), TOY, DRY, Makers())
    assert all(each[0].is_contiguous(memory_format=torch.channels_last) for each in stand.sets)
    assert not any(each[0].is_contiguous() for each in stand.sets)


def test_sets_are_more_than_a_cache_holds_and_share_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "toy_of", lambda shape: shape)
    monkeypatch.setattr(rows, "_SETS_BYTES", 2**21)
    name = next(name for name, shape in SHAPES.items() if shape.sizes == (2, 64, 1280))
    stand = KernelStand(Case(name, "layer_norm"), TOY._replace(is_toy=False), DRY, Makers())
    assert len(stand.sets) == 2**21 // stand.subject.least_bytes > 2
    memory = [each.data_ptr() for one in stand.sets for each in one]
    assert len(memory) == len(set(memory))
    assert all(torch.equal(a, b) for one in stand.sets for a, b in zip(one, stand.sets[0], strict=True))


# How far off a result is


def test_a_distance_is_the_worst_error_as_a_share_of_what_is_allowed() -> None:
    exact = torch.tensor([1.0, -2.0], dtype=torch.float64)
    tolerance = Tolerance(relative=0.1, absolute=0.1)
    assert distance([torch.tensor([1.1, -2.0])], [exact], tolerance) == pytest.approx(0.5)
    assert distance([torch.tensor([1.0, -2.6])], [exact], tolerance) == pytest.approx(2.0)
    assert not distance([torch.tensor([1.0, torch.nan])], [exact], tolerance) <= 1


def test_what_a_kernel_leaves_unwritten_is_no_right_result() -> None:
    stand, fills = stand_of("geglu"), list[bool]()

    def kernel(x: Tensor) -> tuple[Tensor, ...]:
        fills.append(torch.are_deterministic_algorithms_enabled())  # else memory may hold anything, NaN too
        return (torch.empty_like(stand.subject.reference(x)[0]),)

    stand.subject = stand.subject._replace(kernel=kernel)
    assert math.isnan(stand.tolerance_share(kernel, is_kernel=True))
    assert [*fills, torch.are_deterministic_algorithms_enabled()] == [True, False]


def test_a_weight_that_is_not_written_is_no_right_result_either() -> None:
    stand = stand_of("lora_fuse")
    stand.subject.reference(*stand.subject.inputs)
    assert not stand.tolerance_share(lambda *layers: tuple(live for live, _, _ in layers)) <= 1


# The kernel, or what stands in for it


def test_without_a_gpu_a_dry_run_says_that_the_reference_stands_in() -> None:
    stand = stand_of("geglu")
    chosen = chosen_way(stand, KERNEL)
    assert chosen.way is stand.subject.reference
    assert chosen.about["stands_in"] == "the reference, since device is cpu, needs cuda"


def test_where_it_counts_nothing_stands_in_for_a_kernel() -> None:
    stand = stand_of("geglu")
    stand.where = TOY._replace(is_toy=False)
    with pytest.raises(SideError, match="device is cpu, needs cuda"):
        chosen_way(stand, KERNEL)


def test_a_kernel_that_takes_the_inputs_is_what_is_measured() -> None:
    stand = stand_of("geglu")
    stand.subject = stand.subject._replace(why_not=lambda x: (), kernel=lambda x: stand.subject.reference(x))
    assert kernel_row(stand, KERNEL)["about"] == {}
    assert chosen_way(stand, KERNEL).way is stand.subject.kernel


@pytest.mark.parametrize("side", [KERNEL, KERNEL_COMPILED])
def test_a_row_has_times_bytes_floor_and_distance(side: str) -> None:
    row = kernel_row(stand_of("group_norm", pace=Pace(pairs=2, run_ms=0.0)), side)
    assert row["floor_share"] == pytest.approx(row["floor_ms"] / row["ms"])
    assert row["floor_ms"] == pytest.approx(1000 * row["least_bytes"] / 4.3e12)
    assert row["predicted_ratio"] == row["plain_bytes"] / row["least_bytes"] > 4
    assert (row["input_sets"], row["launched"]) == (2, "kernel by kernel: there is no GPU")
    assert (row["plain_launches"], row["launches"] is None) == (6, side == KERNEL_COMPILED)


def test_a_row_of_a_known_gpu_has_its_prediction_and_its_own_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = stand_of("geglu")
    _replace_kernel(stand)
    assert kernel_row(stand, KERNEL)["predicted_ms"] is None
    monkeypatch.setattr(KernelStand, "gpu", H200)
    row, compiled = kernel_row(stand, KERNEL), kernel_row(stand, KERNEL_COMPILED)
    assert row["predicted_ms"] == predicted_ms(stand.shape, OWN[0], H200) > 0.01
    assert compiled["predicted_ms"] is None
    assert row["own_floor_ms"] == pytest.approx(row["least_bytes"] / 4.8e9)
    assert row["own_floor_share"] == pytest.approx(row["own_floor_ms"] / row["ms"])


def test_milliseconds_are_those_of_one_call_not_of_a_pass_over_the_sets() -> None:
    stand = stand_of("geglu")

    def slow(x: Tensor) -> tuple[Tensor, ...]:
        time.sleep(0.02)
        return stand.subject.reference(x)

    stand.subject = stand.subject._replace(plain=slow)
    assert kernel_row(stand, KERNEL)["stock_ms"] == pytest.approx(20, rel=0.4)


# Graphs


def test_a_replay_computes_from_the_inputs_as_they_are_now() -> None:
    stand, results = stand_of("geglu"), list[Tensor]()

    def work() -> Sequence[Tensor]:
        results[:] = stand.work(stand.subject.plain)()
        return results

    with replayed(work, Recorder(), CPU) as call:
        recorded = results[0]
        stand.sets[-1][0].mul_(2)
        call()
        assert torch.equal(recorded, stand.subject.plain(*stand.sets[-1])[0])


def test_both_sides_are_replayed_from_graphs_where_there_are_any() -> None:
    stand = stand_of("geglu")
    calls: list[str] = []

    def way(x: Tensor) -> tuple[Tensor, ...]:
        calls.append("run")
        return stand.subject.reference(x)

    stand.launcher = Recorder()
    times, launched = timed(stand, way)
    assert launched == "by graph"
    assert len(calls) == 2 * len(stand.sets)  # once before it is recorded, and recorded
    assert all(len(each) == stand.pace.pairs for each in times.values())


def test_what_no_graph_can_hold_is_launched_kernel_by_kernel_on_both_sides() -> None:
    stand = stand_of("geglu")

    def waits(x: Tensor) -> tuple[Tensor, ...]:
        x.sum().item()
        return stand.subject.reference(x)

    stand.launcher = Recorder()
    _, launched = timed(stand, waits)
    assert launched.startswith("kernel by kernel: ")
    assert "waits for the device" in launched


# Tuning


def test_neighbours_differ_in_one_size_by_half_or_twice() -> None:
    assert neighbours(configs.Tile(high=1, wide=64, warps=16)) == [
        configs.Tile(high=2, wide=64, warps=16),
        configs.Tile(high=1, wide=32, warps=16),
        configs.Tile(high=1, wide=128, warps=16),
        configs.Tile(high=1, wide=64, warps=8),
    ]


@EACH
def test_a_launch_takes_each_of_its_candidates(
    name: str, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    module = getattr(kernels_subjects, shape.kernel)
    monkeypatch.setattr(module, "launch", lambda *args, tile, **named: taken.append(tile) or (args[0], None))
    subject = subject_of(toy_of(shape), CPU)
    tiles = subject.candidates(*subject.inputs)
    for tile in tiles:
        subject.kernel(*subject.inputs, tile=tile)
    assert taken == list(tiles)


@pytest.fixture
def tuned() -> dict[str, Any]:
    """Tuning of a kernel that is fast with 16 rows, wrong with 4, and does not compile with 128 columns."""
    stand = stand_of("geglu", pace=Pace(pairs=3, run_ms=0.0))

    def kernel(x: Tensor, tile: configs.Tile) -> tuple[Tensor, ...]:
        if tile.wide == 128:
            raise RuntimeError("PassManager::run failed\nand more")
        time.sleep(0.001 if tile.high == 16 else 0.01)
        return (stand.subject.reference(x)[0] * (2 if tile.high == 4 else 1),)

    stand.subject = stand.subject._replace(kernel=kernel, why_not=lambda x: (), candidates=lambda x: OWN)
    return tuning_row(stand, "neighbours")


def _replace_kernel(stand: KernelStand) -> None:
    """By its reference, with any tile."""
    subject = stand.subject

    def kernel(x: Tensor, tile: object = None) -> tuple[Tensor, ...]:
        return subject.reference(x)

    stand.subject = subject._replace(kernel=kernel, why_not=lambda x: (), candidates=lambda x: OWN)


H200 = next(gpu for gpu in GPUS if gpu.name == "H200")

# As a table has them for a shape.
OWN = (configs.Tile(high=8, wide=256, warps=4), configs.Tile(high=8, wide=512, warps=8))


def test_the_best_tile_is_named_and_what_cannot_be_had_says_why(tuned: dict[str, Any]) -> None:
    assert (tuned["tile"], tuned["best"]) == (repr(OWN[0]), repr(OWN[0]._replace(high=16)))
    assert tuned["ratio"] > 3
    reasons = [each["reason"] for each in tuned["tried"] if "reason" in each]
    assert reasons[0].startswith("wrong by ")
    assert reasons[1] == "RuntimeError: PassManager::run failed"


def test_other_candidates_and_neighbours_are_tried_each_once(tuned: dict[str, Any]) -> None:
    tried = [each["tile"] for each in tuned["tried"]]
    assert tried == [repr(OWN[1]), *map(repr, neighbours(OWN[0]))]
    assert len(tried) == 7


def test_graphs_are_recorded_with_the_tile_that_they_are_to_show() -> None:
    stand = stand_of("geglu")
    seen: list[int] = []

    def kernel(x: Tensor, tile: configs.Tile) -> tuple[Tensor, ...]:
        seen.append(tile.warps)
        return stand.subject.reference(x)

    stand.subject = stand.subject._replace(kernel=kernel, why_not=lambda x: (), candidates=lambda x: OWN[:1])
    stand.launcher = Recorder()
    tuning_row(stand, "neighbours")
    assert seen[-8:] == [4] * 4 + [8] * 4  # of the last neighbour: the table's, then its own, two sets twice


def test_all_tiles_of_a_known_gpus_kernel_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = stand_of("geglu")
    _replace_kernel(stand)
    monkeypatch.setattr(KernelStand, "gpu", H200)
    tried = [each["tile"] for each in tuning_row(stand, "neighbours")["tried"]]
    assert {*map(repr, configs.GEGLU[configs.ANY][1:])} < {*tried}
    assert len(tried) == len({*tried, repr(OWN[0])}) - 1


def test_without_a_launch_there_is_nothing_to_tune_and_the_row_says_why() -> None:
    row = tuning_row(stand_of("geglu"), "neighbours")
    assert (row["tile"], row["tried"]) == (None, [])
    assert "needs cuda" in row["about"]["stands_in"]


# In Triton's interpreter

_INTERPRETED = """
import torch
from lib_accel.bench.gpu.kernels_rows import KernelStand, chosen_way
from lib_accel.bench.gpu.kernels_shapes import SHAPES
from lib_accel.bench.gpu.models import Where
from lib_accel.bench.gpu.parts import KERNEL, Case
from lib_accel.bench.gpu.sides import Makers
from lib_accel.bench.gpu.timing import DRY

where = Where(torch.device("cpu"), torch.float32, False, True)
for kernel in dict.fromkeys(shape.kernel for shape in SHAPES.values()):
    name = next(name for name, shape in SHAPES.items() if shape.kernel == kernel)
    stand = KernelStand(Case(name, kernel), where, DRY, Makers())
    chosen = chosen_way(stand, KERNEL)
    assert chosen.way is stand.subject.kernel, chosen.about
    share = stand.tolerance_share(chosen.way, is_kernel=True)
    assert 0 < share <= 1, (kernel, share)
    print(kernel)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="requirements-dev.txt has Triton for Linux only")
def test_the_kernels_themselves_run_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _INTERPRETED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(done.stdout.split()) == {shape.kernel for shape in SHAPES.values()}


# The table

ROW: dict[str, Any] = {
    "part": "kernels",
    "case": "geglu sd15: 2x4096x2560",
    "side": KERNEL,
    "kind": KERNELS,
    "status": DONE,
    "stock_ms": 0.05,
    "ms": 0.025,
    "predicted_ms": 0.0206,
    "own_floor_share": 0.71,
    "ratio": 2.0,
    "ratio_low95": 1.9,
    "ratio_high95": 2.1,
    "predicted_ratio": 1.67,
    "least_bytes": 60 * 2**20,
    "floor_share": 0.585,
    "plain_launches": 2,
    "launches": 1,
    "tolerance_share": 0.9,
    "plain_tolerance_share": 0.8,
    "launched": "by graph",
    "about": {},
}
ABOUT = {"dry_run": True}


def _lines(*rows: dict[str, Any]) -> list[str]:
    figures = {"environment": ABOUT, "rows": {str(number): row for number, row in enumerate(rows)}}
    return gpu_table(figures).splitlines()


def test_a_row_of_kernels_has_its_figures_in_their_units() -> None:
    _, _, part, _, line, remark = _lines(ROW)
    assert part == "kernels"
    values = ["0.05", "0.025", "0.0206", "2.00", "1.90-2.10", "1.7", "60"]
    values += ["58.5", "%", "71", "%", "2", "to", "1", "0.90", "0.80"]
    assert line.split()[-len(values) :] == values
    assert remark == "1 rows launched by graph"


def test_what_stands_in_and_what_is_too_far_off_is_told() -> None:
    told = _lines(ROW | {"about": {"stands_in": "the reference, since x"}, "tolerance_share": float("nan")})
    assert "1 rows: for the kernel stands the reference, since x" in told
    assert f"farther from float64 than the kernels' tables allow: {ROW['case']}, {KERNEL}" in told


def test_the_best_tile_of_a_shape_is_a_line() -> None:
    row = {
        **ROW,
        "part": "kernels-tuning",
        "kind": TUNING,
        "tile": "Tile(1)",
        "tried": [{}, {"reason": "odd"}],
    }
    first, second = ({**row, "best": best, "ratio": 1.2} for best in ("Tile(2)", "Tile(1)"))
    told = _lines(first, second, row | {"tile": None})
    assert told[4].split()[-5:] == ["Tile(1)", "Tile(2)", "1.20", "2", "1"]
    assert told[5].split()[-4:] == ["-", "1.20", "2", "1"]
    assert told[6] == "the table's own tile has 95 % of the best one's speed: geglu at 0 of 2 shapes"
    assert told[7] == "1 shapes without a launch to tune"


def _tensors(values: Any) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else [each for value in values for each in _tensors(value)]
