"""What the page and the API can ask for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lib_accel.errors import TaskError
from lib_accel.painter import Wanted
from lib_accel.pictures import compared
from lib_accel.report import FormatCase, TuningCase, TuningReport
from tests.fakes.host import FakeHost, attached
from tests.fakes.models import inputs, run, tiny_unet
from tests.fakes.operations import FakeOperations
from tests.test_pictures import PICTURE

WANTED = Wanted(width=64, height=64)


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[FakeOperations]:
    host = FakeHost()
    host.live = [("UNet", tiny_unet())]
    with attached(host) as engine:
        operations = FakeOperations(tmp_path, host, engine)
        operations.painter.on_draw = lambda: _draw(operations)
        yield operations


def _draw(operations: FakeOperations) -> None:
    run(operations.host.live[0][1], inputs())


def _wait() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("accel-"):
            thread.join(10)


def test_the_status_of_a_new_installation_is_empty(operations: FakeOperations) -> None:
    status = operations.status()
    assert (status["pictures"], status["networks"], status["advice"]) == ([], [], {})
    assert (status["task"], status["benchmark"]) == (None, None)
    assert status["cache"]["choices"] == 0
    assert status["options"]["enabled"] is True


def test_the_latest_pictures_are_told(operations: FakeOperations) -> None:
    operations.pictures.add(compared(PICTURE, 1.6, 1))
    (picture,) = operations.status()["pictures"]
    assert (picture["its_per_s"], picture["ratio"], picture["largest_difference"]) == (10.0, 1.6, 1)
    _draw(operations)
    assert operations.summary().endswith("1.6x")


def test_the_summary_says_that_the_last_picture_was_drawn_without_us(operations: FakeOperations) -> None:
    _draw(operations)
    operations.pictures.add(replace(PICTURE, is_accelerated=False))
    assert operations.summary().endswith("blocks fast · off in the last picture")
    operations.pictures.add(PICTURE)
    assert operations.summary().endswith("blocks fast")


def test_the_summary_counts_control_models(operations: FakeOperations) -> None:
    _draw(operations)
    operations.engine.generation.control_models = 2
    assert operations.summary().endswith("2 ControlNets")


def test_the_cache_does_not_tell_whose_folder_it_is(
    operations: FakeOperations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path.parent)
    assert operations.status()["cache"]["folder"] == f"~/{tmp_path.name}"


def test_each_reason_has_its_advice(operations: FakeOperations) -> None:
    operations.host.attention = ["HyperTile is on"]
    operations.host.stand_aside = ["weights are stored in fp8"]
    assert set(operations.status()["advice"]) == {"HyperTile is on", "weights are stored in fp8"}


def test_kept_files_are_told_with_their_limit(operations: FakeOperations) -> None:
    operations.networks.size = 3 * 2**20
    assert operations.status()["memory"][0] == {"what": "LoRA files kept", "mib": 3.0, "limit_mib": 512.0}


def test_merged_networks_are_told_with_their_strengths(operations: FakeOperations) -> None:
    operations.networks.loaded = [("style", 0.8, 1.0)]
    assert operations.status()["networks"] == [{"name": "style", "unet": 0.8, "text_encoder": 1.0}]


def test_a_warm_up_is_told_as_a_task(operations: FakeOperations) -> None:
    assert operations.warm_up(WANTED).pictures == 1
    task = operations.status()["task"]
    assert (task["name"], task["is_running"], task["error"]) == ("warm-up", False, None)
    assert "drawing a first picture" in operations.painter.told


def test_a_warm_up_in_the_background_ends_too(operations: FakeOperations) -> None:
    operations.start_warm_up(WANTED)
    _wait()
    assert operations.status()["task"]["outcome"].startswith("ready: a picture drawn")


def test_a_benchmark_stays_until_the_next_one(operations: FakeOperations) -> None:
    operations.start_benchmark(WANTED)
    _wait()
    assert [row["loras"] for row in operations.status()["benchmark"]["rows"]] == [0, 1, 4]
    operations.warm_up(WANTED)
    assert operations.status()["benchmark"] is not None
    assert operations.benchmark(WANTED).rows[0].ratio == 1.0


def test_a_task_in_the_background_can_be_cancelled(operations: FakeOperations) -> None:
    began, may_go_on = threading.Event(), threading.Event()
    operations.painter.on_draw = lambda: (_draw(operations), began.set(), may_go_on.wait(10))[0]
    operations.start_benchmark(WANTED)
    assert began.wait(10)
    assert operations.cancel()
    may_go_on.set()
    _wait()
    assert operations.status()["task"]["error"] == "the benchmark was cancelled"
    assert operations.painter.interruptions == 1
    assert operations.status()["benchmark"] is None


def test_tasks_that_cannot_be_done_say_why(operations: FakeOperations) -> None:
    with operations.host.switched_off(), pytest.raises(TaskError, match="acceleration is off"):
        operations.warm_up(WANTED)
    assert "acceleration is off" in operations.status()["task"]["error"]


def test_the_report_names_versions_options_reasons_and_pictures(operations: FakeOperations) -> None:
    operations.host.attention = ["HyperTile is on"]
    operations.pictures.add(PICTURE)
    text = operations.report()
    for part in ("program: a fake", "code: auto", "x HyperTile is on", "20 steps, 2.00 s, 10.00 it/s"):
        assert part in text


FORMATS = [
    FormatCase(
        "UNet", True, "its residual blocks take 9.00 ms channels first, 7.00 ms channels last", {"torch": 9.0}
    ),
    FormatCase("VAE", False, "undecided: its residual blocks were not called yet"),
    FormatCase("ControlNet", False, "", {}, True, "its attention parts take 3.00 ms apart, 2.00 ms packed"),
]
TUNING = TuningReport(
    [
        TuningCase(
            "attention",
            "2x4096x320",
            "float16",
            "cuda:0",
            "torch",
            "cuDNN",
            "",
            ms={"torch": 0.4, "cuDNN": 0.3},
        ),
        TuningCase("group norm", "2x320x64x64", "float16", "cuda:0", "torch", "torch", "", ms={"torch": 0.2}),
        TuningCase("layer norm", "2x4096x320", "float16", "cuda:0", "torch", "torch", "to be measured"),
    ],
    pending=1,
    formats=FORMATS,
)


def _with(operations: FakeOperations, tuning: TuningReport) -> FakeOperations:
    report = replace(operations.engine.report(), tuning=tuning)
    operations.engine.report = lambda: report  # type: ignore[method-assign]
    return operations


def test_the_report_counts_operators_and_names_those_that_are_not_torch(operations: FakeOperations) -> None:
    lines = _with(operations, TUNING).report().splitlines()
    began = lines.index("operators: 2 measured, 1 faster than torch, 1 to be measured")
    assert lines[began + 1] == "  attention 2x4096x320 float16: cuDNN, 0.400 -> 0.300 ms"
    assert lines[began + 2].startswith(
        "memory format of UNet: channels last, its residual blocks take 9.00 ms"
    )
    assert lines[began + 3].startswith("memory format of VAE: channels first, undecided")
    assert lines[began + 4].startswith("projections of ControlNet: packed, its attention parts take 3.00 ms")


def test_the_report_says_nothing_of_operators_where_there_is_no_choice(operations: FakeOperations) -> None:
    report = _with(operations, TuningReport(formats=FORMATS[1:2])).report()
    assert "operators" not in report
    assert "memory format" not in report


def test_the_report_says_why_no_operator_can_be_measured(operations: FakeOperations) -> None:
    fault = "no contest can be held: the process ended with 1 before it began"
    assert f"  {fault}" in _with(operations, replace(TUNING, fault=fault)).report().splitlines()
    assert "Restart" in operations.status()["advice"][fault]


def test_an_undecided_memory_format_has_advice_and_a_measured_one_needs_none(
    operations: FakeOperations,
) -> None:
    status = _with(operations, TUNING).status()
    assert set(status["advice"]) == {FORMATS[1].reason}


def test_attention_that_is_not_as_asked_for_is_told_with_what_to_do(operations: FakeOperations) -> None:
    _with(operations, replace(TUNING, refused=["sageattention is not installed"]))
    assert (
        "  attention is not as asked for: sageattention is not installed" in operations.report().splitlines()
    )
    assert "install" in operations.status()["advice"]["sageattention is not installed"]


def test_an_operator_whose_times_are_lost_does_not_spoil_the_report(operations: FakeOperations) -> None:
    case = replace(TUNING.cases[0], ms={})
    assert "cuDNN, nan -> nan ms" in _with(operations, TuningReport([case])).report()


def test_forgetting_counts_choices(operations: FakeOperations) -> None:
    assert operations.forget() == 0
