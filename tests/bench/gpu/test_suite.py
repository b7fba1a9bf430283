"""The suite of GPUs as it runs dry: every row of every part, at a tiny size on the CPU."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lib_accel.bench.cli import main
from lib_accel.bench.gpu import suite as room
from lib_accel.bench.gpu.cli import _plan
from lib_accel.bench.gpu.deadline import Overdue
from lib_accel.bench.gpu.file import DONE, FAILED, LEFT_OUT, OVERDUE, RowFile, row_name
from lib_accel.bench.gpu.models import Where
from lib_accel.bench.gpu.ours import _owners
from lib_accel.bench.gpu.parts import (
    AUTO,
    AUTO_SINGLE,
    NEAR,
    OPERATORS,
    PARTS,
    SPEED,
    STOCK,
    SWITCH,
    WARM_UP,
    XFORMERS,
)
from lib_accel.bench.gpu.rows import speed_row
from lib_accel.bench.gpu.sides import SideError
from lib_accel.bench.gpu.stage import Stage
from lib_accel.bench.gpu.suite import KINDS, LostError, Plan, gpu_suite
from lib_accel.bench.gpu.timing import DRY
from lib_accel.patching import is_ours
from tests.fakes.models import sgm_openaimodel

_MOST_S = 150.0  # of this process, on one thread
_TEXT = [row_name("text", case.name, side) for case, side in PARTS["text"].rows()]


class Dry(NamedTuple):
    """What the command left."""

    status: int
    figures: dict[str, Any]
    seconds: float
    picture: Path

    def rows(self, **wanted: Any) -> list[dict[str, Any]]:
        """Rows with these values."""
        rows = self.figures["rows"].values()
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]

    def ours(self) -> list[dict[str, Any]]:
        """Rows of speed of our sides."""
        return [row for row in self.rows(kind=SPEED, status=DONE) if row["side"].startswith("ours")]


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Dry:
    """All parts, run dry once."""
    sgm_openaimodel()
    file = tmp_path_factory.mktemp("gpu") / "figures.json"
    began = time.process_time()
    status = main(["--suite", "gpu", "--part", "all", "--dry-run", "--json", str(file)])
    seconds = time.process_time() - began
    return Dry(status, json.loads(file.read_text("utf-8")), seconds, file.with_suffix(".png"))


def test_every_row_of_every_part_works_but_those_of_a_package_that_is_missing(dry: Dry) -> None:
    wanted = [row_name(part, case.name, side) for part in PARTS for case, side in PARTS[part].rows()]
    assert list(dry.figures["rows"]) == wanted
    others = {row["side"]: row["status"] for row in dry.rows() if row["status"] != DONE}
    assert (dry.status, others) == (0, {XFORMERS: LEFT_OUT})


def test_all_of_it_takes_less_than_a_minute_and_a_half(dry: Dry) -> None:
    assert dry.seconds < _MOST_S


def test_speeds_have_all_their_columns_and_they_are_numbers(dry: Dry) -> None:
    columns = ("ms", "stock_ms", "ratio", "calls_per_s", "floor_share", "compile_s", "warmup_s", "rel_l2")
    columns += ("max_abs", "rel_l2_fp32", "stock_rel_l2_fp32", "flop")
    for row in dry.rows(kind=SPEED, status=DONE):
        assert all(math.isfinite(row[column]) for column in columns)
        assert row["ms"] > 0 < row["floor_share"]
        assert ("ratio_low95" in row) == ("ratio_high95" in row) == (row["side"] != STOCK)


def test_our_sides_give_what_stock_gives_and_leave_no_block_to_it(dry: Dry) -> None:
    assert max(row["rel_l2"] for row in dry.ours()) < 1e-5
    assert {row["about"]["blocks"]["host"] for row in dry.ours()} == {0}
    assert all(row["about"]["blocks"]["direct"] + row["about"]["blocks"]["compiled"] for row in dry.ours())


def test_what_is_to_be_replayed_is_replayed_and_nothing_else_is(dry: Dry) -> None:
    for row in dry.ours():
        replayed = row["about"]["blocks"]["replayed"]
        done = row["about"]["blocks"]["direct"] + row["about"]["blocks"]["compiled"]
        if "graphs" in row["side"]:  # in the loop of ControlNets not blocks that are small
            assert replayed == done or (row["part"] == "controlnet" and replayed > done / 2)
        elif "auto" not in row["side"]:
            assert replayed == 0


def test_recordings_outlive_the_turns_of_stock(dry: Dry) -> None:
    for row in dry.ours():
        if "direct, graphs" in row["side"]:
            assert row["about"]["recorded"]["captures"] == row["about"]["recorded"]["graphs"]


def test_what_is_to_be_compiled_is_compiled(dry: Dry) -> None:
    compiled = [row for row in dry.ours() if "compiled" in row["side"]]
    assert len(compiled) == 2
    assert all(row["about"]["blocks"]["compiled"] and row["compile_s"] for row in compiled)
    # What was compiled stays so until the end. The stand-in for CUDA graphs cannot record all of it.
    assert compiled[0]["about"]["blocks"]["compiled"] > 3 * compiled[0]["about"]["blocks"]["direct"]
    others = [row for row in dry.rows(kind=SPEED, status=DONE) if row["side"].startswith("torch.compile")]
    assert len(others) == 4
    assert all(row["about"]["graphs"] and row["compile_s"] for row in others)


def test_launches_are_one_list_with_any_number_of_loras(dry: Dry) -> None:
    for side in PARTS["loras"].sides:
        rows = dry.rows(part="loras", side=side)
        assert len({row["operations_list"] for row in rows}) == 1
        assert len(rows) == len({row["norm"] for row in rows}) == 4  # and the weights are others


def test_a_controlnet_is_called_and_costs(dry: Dry) -> None:
    counts = [row["flop"] for row in dry.rows(part="controlnet", side=STOCK)]
    assert counts[0] < counts[1] < counts[2]


def test_switches_end_with_the_very_bits(dry: Dry) -> None:
    rows = dry.rows(kind=SWITCH)
    assert len(rows) == 6
    assert all(row["restores_bits"] for row in rows)


def test_profiles_name_three_kernels_and_the_floors_of_operations(dry: Dry) -> None:
    for row in dry.rows(part="profile"):
        assert len(row["largest"]) == 3
        assert 0 < sum(each["share"] for each in row["largest"]) <= 1.001
        convolution = next(each for each in row["roofline"] if each["operation"] == "aten.convolution")
        assert convolution["ms"] > convolution["floor_ms"] > 0


def test_operators_say_that_there_is_no_choice_on_a_cpu(dry: Dry) -> None:
    rows = dry.rows(kind=OPERATORS)
    assert len(rows) == len(PARTS["operators"].cases)
    assert all("nothing but torch takes its arguments here" in row["reason"] for row in rows)
    assert all(row["ms"] > row["floor_ms"] > 0 for row in rows)
    assert {row["share"] for row in dry.rows(kind=NEAR)} == {1.0}


def test_nothing_is_tuned_on_a_cpu(dry: Dry) -> None:
    tuned = [row for row in dry.rows(status=DONE) if row["side"] in (AUTO, AUTO_SINGLE)]
    assert {row["kind"] for row in tuned} == {SPEED, "profile", WARM_UP}
    assert {row["about"]["operators"]["sizes"] for row in tuned} == {0}


def test_the_file_says_that_the_run_was_dry_and_a_picture_is_beside_it(dry: Dry) -> None:
    assert dry.figures["environment"]["dry_run"] is True
    assert dry.figures["running"] is None
    assert dry.picture.stat().st_size > 10_000


def test_afterwards_no_class_is_other_than_it_was(dry: Dry) -> None:
    import ldm.modules.attention as attention

    assert attention.CrossAttention.forward.__module__ == "ldm.modules.attention"
    assert not [owner for owner in _owners() if is_ours(owner.forward)]


# One part, with rows that do as they like

PLAN = Plan(Where(torch.device("cpu"), torch.float32, False, True), DRY)


def _run(
    measure: Any, file: RowFile | None = None, plan: Plan = PLAN, parts: tuple[str, ...] = ("text",)
) -> tuple[bool, RowFile]:
    file = file or RowFile(None, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "KINDS", {**KINDS, SPEED: measure})
        return gpu_suite(parts, plan, file, lambda row: None), file


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("odd"), FAILED), (SideError("odd"), LEFT_OUT), (Overdue("odd"), OVERDUE)],
)
def test_a_side_that_fails_is_a_row_with_its_reason_and_the_others_are_measured(
    error: BaseException, status: str
) -> None:
    def measure(stand: Any, side: str) -> dict[str, Any]:
        if side == STOCK:
            raise error
        return {"ms": 1.0}

    is_whole, file = _run(measure)
    first, *others = file.rows.values()
    assert (is_whole, first["status"]) == (True, status)
    assert "odd" in first["reason"]
    assert {row["status"] for row in others} == {DONE}


def test_what_takes_too_long_is_ended_and_the_others_are_measured() -> None:
    def measure(stand: Any, side: str) -> dict[str, Any]:
        if side == STOCK:
            time.sleep(30)
        return {}

    _, file = _run(measure, plan=Plan(PLAN.where, DRY, row_s=0.2))
    assert [row["status"] for row in file.rows.values()] == [OVERDUE, DONE, DONE, DONE]


def test_a_second_call_measures_only_what_is_missing() -> None:
    asked: list[str] = []

    def measure(stand: Any, side: str) -> dict[str, Any]:
        asked.append(side)
        return {}

    _, file = _run(measure)
    del file.rows[_TEXT[1]]
    asked.clear()
    assert _run(measure, file)[0]
    assert asked == [PARTS["text"].sides[1]]


def test_no_row_is_begun_that_might_end_too_late_but_the_first_one_is() -> None:
    late = Plan(PLAN.where, DRY, limit_s=1)
    is_whole, file = _run(lambda stand, side: {}, plan=late)
    assert (is_whole, list(file.rows)) == (False, _TEXT[:1])


def test_of_a_second_part_no_row_is_begun_too_late_not_even_the_first() -> None:
    late = Plan(PLAN.where, DRY, limit_s=1)
    _, file = _run(lambda stand, side: {})
    file.rows.popitem()
    is_whole, file = _run(lambda stand, side: {}, file, late, parts=("text", "vae"))
    assert (is_whole, list(file.rows)) == (False, _TEXT)


def test_without_memory_for_float32_all_other_figures_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(stage: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Stage, "exact", none)
    _, file = _run(speed_row)
    assert [row["status"] for row in file.rows.values()] == [DONE] * 4
    assert {row["rel_l2_fp32"] for row in file.rows.values()} == {None}


def test_an_output_that_holds_nan_is_no_result() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "call", lambda stage: torch.full([1], math.nan))
        _, file = _run(speed_row)
    assert {row["reason"] for row in file.rows.values()} == {"its output holds NaN or Inf"}


def test_a_gpu_that_is_lost_ends_the_run_after_its_row_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(where: Where) -> None:
        raise LostError("lost")

    monkeypatch.setattr(room, "_check", lost)
    file = RowFile(None, {})
    with pytest.raises(LostError):
        _run(lambda stand, side: {}, file)
    assert list(file.rows) == _TEXT[:1]


def test_the_plan_of_a_gpu_is_half_precision_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    plan = _plan(Namespace(dry_run=None, quick=False, limit_s=None, row_s=None))
    assert plan.where == Where(torch.device("cuda", 0), torch.float16, True, False)
    assert (plan.pace.pairs, plan.makers.others) == (15, "inductor")
