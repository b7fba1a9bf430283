"""The benchmark takes stock and ours in turn, and its ratio is that of pairs."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from lib_accel.errors import TaskCancelled, TaskError
from lib_accel.painter import Wanted
from lib_accel.tasks.benchmark import Benchmark, benchmark
from lib_accel.tasks.task import Outcome, Task
from tests.fakes.host import FakeHost, attached
from tests.fakes.models import inputs, run, tiny_unet
from tests.fakes.painter import FakePainter

WANTED = Wanted(width=64, height=64, steps=6)


def _figures(painter: FakePainter, task: Task | None = None, **how: Any) -> Outcome[Benchmark]:
    """The benchmark with an engine that runs in each picture."""
    unet = tiny_unet()
    with attached() as engine:
        painter.on_draw = lambda: run(unet, inputs())
        return benchmark(engine, painter, WANTED, task or Task("benchmark"), **{"pairs": 1, **how})


def _twice_as_fast(is_accelerated: bool) -> float:
    return 10.0 if is_accelerated else 20.0


def test_the_ratio_is_stocks_time_by_ours() -> None:
    figures = _figures(FakePainter(_twice_as_fast), pairs=2).value
    assert [(row.loras, row.stock_ms, row.ours_ms, row.ratio) for row in figures.rows] == [
        (loras, 20.0, 10.0, 2.0) for loras in (0, 1, 4)
    ]
    assert all(row.low <= row.ratio <= row.high for row in figures.rows)
    assert (figures.device, figures.width, figures.steps) == ("cpu", 64, 6)


def test_sides_take_turns_after_a_picture_of_each() -> None:
    painter = FakePainter()
    _figures(painter, loras=(1,), pairs=2)
    order = "".join("B" if is_accelerated else "A" for _, is_accelerated in painter.drawn)
    assert order == "AB" + "BAAB" + "B"


def test_prompts_name_as_many_loras_as_the_row_says() -> None:
    painter = FakePainter()
    _figures(painter, loras=(0, 2), pairs=1)
    assert [prompt.count("<lora:") for prompt, _ in painter.drawn] == [0, 0, 2, 2] * 2 + [0]


def test_the_last_picture_gives_the_weights_back() -> None:
    painter = FakePainter()
    _figures(painter, loras=(4,), pairs=1)
    assert (painter.drawn[-1], painter.wanted[-1].steps) == (("", True), 1)


def test_progress_counts_pictures() -> None:
    seen: list[float] = []
    task = Task("benchmark", lambda stage: seen.append(task.report().done))
    painter = FakePainter()
    _figures(painter, task, loras=(0, 1))
    assert painter.sessions == [("benchmark", len(painter.drawn))]
    assert seen == sorted(seen)


def test_the_outcome_is_in_words() -> None:
    text = _figures(FakePainter(_twice_as_fast)).text
    assert text == "2.00x with no LoRA, 2.00x with 1 LoRA, 2.00x with 4 LoRAs"


def test_an_interruption_ends_it_without_figures() -> None:
    painter = FakePainter()
    painter.interrupt_at = 3
    with pytest.raises(TaskCancelled):
        _figures(painter)
    assert not painter.is_open


def test_too_few_steps_are_refused_before_anything_is_drawn() -> None:
    painter = FakePainter()
    with attached() as engine, pytest.raises(TaskError, match="got 5, expected 6 or more"):
        benchmark(engine, painter, Wanted(steps=5), Task("benchmark"))
    assert painter.drawn == []


def test_stock_is_not_measured_against_stock() -> None:
    host, painter = FakeHost(), FakePainter()
    with attached(host) as engine:
        with host.switched_off(), pytest.raises(TaskError, match="acceleration is off"):
            benchmark(engine, painter, WANTED, Task("benchmark"))
        host.stand_aside = ["weights are stored in fp8"]
        with pytest.raises(TaskError, match="nothing would run fast: weights are stored in fp8"):
            benchmark(engine, painter, WANTED, Task("benchmark"))
    assert painter.drawn == []


def test_pictures_in_which_nothing_ran_fast_give_no_figures() -> None:
    painter = FakePainter()
    with attached() as engine, pytest.raises(TaskError, match="nothing ran fast in the picture"):
        benchmark(engine, painter, WANTED, Task("benchmark"))
    assert len(painter.drawn) == 2


@pytest.mark.parametrize("interrupt_at", [-1, 3])
def test_counters_begin_anew_after_it(interrupt_at: int) -> None:
    painter, unet = FakePainter(), tiny_unet()
    painter.interrupt_at = interrupt_at
    with attached() as engine:
        painter.on_draw = lambda: run(unet, inputs())
        with contextlib.suppress(TaskCancelled):
            benchmark(engine, painter, WANTED, Task("benchmark"), pairs=1)
        assert engine.generation.total == 0


def test_steps_that_cannot_be_timed_are_told() -> None:
    with pytest.raises(TaskError, match="choose another sampler"):
        _figures(FakePainter(lambda is_accelerated: None))
