"""Our side in the suite of GPUs: what it measures before it is timed, and that stock has nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_accel.bench.gpu import ours as room
from lib_accel.bench.gpu import rows, sides
from lib_accel.bench.gpu.host import GpuHost
from lib_accel.bench.gpu.models import Where, import_packages
from lib_accel.bench.gpu.ours import Ours
from lib_accel.bench.gpu.parts import AUTO, AUTO_SINGLE, COMPILED, DIRECT, Case
from lib_accel.bench.gpu.sides import Makers, side
from lib_accel.bench.gpu.stage import Stage, staged
from lib_accel.bench.gpu.timing import DRY
from lib_accel.bench.gpu.warm_ups import warm_up_row
from lib_accel.channels_last import Turned, convolution_weights
from lib_accel.engine import Engine
from lib_accel.options import Options
from lib_accel.report import FormatCase, TuningCase, TuningReport

TOY = Where(torch.device("cpu"), torch.float32, False, True)
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def stage() -> Any:
    import_packages()
    with staged(Case("", "sd15"), TOY) as stage:
        yield stage


def _case(size: str, chosen: str = "torch", wanted: str = "torch") -> TuningCase:
    return TuningCase("attention", size, "float16", "cuda:0", chosen, wanted, "")


def _report(*cases: TuningCase, is_last: bool = False, **values: Any) -> TuningReport:
    return TuningReport(cases, formats=[FormatCase("model", is_last, "why")], **values)


ASKED = _report(_case("a", wanted="flash"))
TAKEN = _report(_case("a", "flash", "flash"), _case("b", wanted="flash"), is_last=True)
SETTLED = _report(_case("a", "flash", "flash"), _case("b", "flash", "flash"), is_last=True)


def _prepared(
    reports: Sequence[TuningReport], stage: Stage, monkeypatch: pytest.MonkeyPatch, code: str = "auto"
) -> tuple[Any, list[str]]:
    """What `prepare` spent, and what it did, with an engine that reports so from picture to picture."""
    done: list[str] = []
    left = iter(reports)
    monkeypatch.setattr(Stage, "call", lambda stage: done.append("call"))
    one = Ours(stage.twin(), Options(code=code), Makers().ours)
    engine: Any = SimpleNamespace(
        begin_generation=lambda: done.append("begin"),
        warm_up=lambda: done.append("measure"),
        report=lambda: SimpleNamespace(tuning=next(left)),
    )
    one._engine.detach()
    one._engine = engine
    return one.prepare(), [each for each in done if each != "call"]


def test_pictures_are_drawn_until_nothing_more_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent, done = _prepared([ASKED, TAKEN, SETTLED, SETTLED], stage, monkeypatch)
    assert done == ["begin", "measure"] * 4 + ["begin"]
    assert (spent.compile_s, spent.measure_s > 0) == (0.0, True)


def test_a_format_that_changes_is_something_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _report(_case("a"))
    _, done = _prepared([first, _report(_case("a"), is_last=True)] + [TAKEN] * 2, stage, monkeypatch)
    assert done.count("measure") == 4


def test_a_device_without_a_choice_needs_one_picture(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _, done = _prepared([_report()], stage, monkeypatch)
    assert done == ["begin", "measure", "begin"]


def test_what_never_settles_is_run_as_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = [_report(_case(str(number))) for number in range(20)]
    _, done = _prepared(endless, stage, monkeypatch)
    assert done.count("measure") == 6


def test_to_compile_takes_three_pictures_and_its_waiting_is_for_the_compiler(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent, done = _prepared([_report()] * 3, stage, monkeypatch, code="compiled")
    assert (done.count("measure"), spent.measure_s, spent.compile_s > 0) == (3, 0.0, True)


@pytest.mark.parametrize(
    ("name", "may"), [(DIRECT, False), (COMPILED, False), (AUTO, True), (AUTO_SINGLE, True)]
)
def test_only_sides_of_auto_measure_operators(
    name: str, may: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuners: list[Any] = []

    def engine(host: Any, choice: Any, launches: Any, tuner: Any) -> Engine:
        tuners.append(tuner)
        return Engine(host, choice, launches, tuner)

    monkeypatch.setattr(room, "Engine", engine)
    side(name, stage, Makers()).close()
    (tuner,) = tuners
    assert (tuner is None) is may
    assert may or tuner.tuned(GPU) is None


def test_stock_keeps_its_format_when_our_weights_are_turned(stage: Stage) -> None:
    one: Any = side(AUTO, stage, Makers())
    try:
        own = convolution_weights(one._stage.root)
        turned = Turned().lay([(weight,) for weight in own])
    finally:
        one.close()
    assert turned > 0
    assert all(weight.is_contiguous() for weight in convolution_weights(stage.root))


def test_of_weights_only_those_that_may_be_turned_are_our_own(stage: Stage) -> None:
    both: list[Any] = [side(name, stage, Makers()) for name in (AUTO, DIRECT)]
    for each in both:
        each.close()
    one, plain = both
    pairs = zip(stage.root.parameters(), one._stage.root.parameters(), strict=True)
    own = [ours for stocks, ours in pairs if ours is not stocks]
    assert {(each.dim(), each.shape[-1]) for each in own} == {(4, 3)}
    assert one.own_mib == sum(each.nbytes for each in own) / 2**20
    assert plain.own_mib == 0.0


def test_weights_of_our_own_do_not_count_as_memory_that_our_side_needs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "peak_mib", lambda call, device: 100.0)
    row = rows.speed_row(rows.Stand(stage, DRY, Makers()), AUTO)
    assert row["stock_peak_mib"] == 100.0 > row["peak_mib"] > 0


def test_choices_are_looked_at_without_graphs_as_they_were_measured_for_graphs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Options] = []
    monkeypatch.setattr(sides, "Ours", lambda stage, options, backends: asked.append(options))
    for name in (AUTO, AUTO_SINGLE):
        side(name, stage, Makers())
    assert [(each.code, each.launch) for each in asked] == [("auto", "auto")] * 2
    assert [each.graph_memory_mib > 0 for each in asked] == [True, False]


def test_what_is_measured_is_kept_apart_from_the_users_choices(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    assert GpuHost(Options(), stage.root, None).cache_folder() == tmp_path / "bench-gpu"


def test_a_side_tells_how_many_sizes_take_another_implementation_and_the_formats() -> None:
    chosen = room._chosen(TAKEN)
    assert (chosen["sizes"], chosen["taken"], chosen["by_operator"]) == (2, 1, {"attention": 1})


def test_a_row_of_warming_up_has_every_contest(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ours, "contests", lambda one: [{"operator": "attention"}])
    stand: Any = SimpleNamespace(stage=stage, makers=Makers())
    row = warm_up_row(stand, AUTO)
    assert row["contests"] == [{"operator": "attention"}]
    assert row["about"]["operators"]["pending"] == 0
    assert row["about"]["formats"]["model"].startswith("first: ")
    assert row["measure_s"] >= 0 < row["warmup_s"]
