"""The benchmark takes stock and ours in turn, and its ratio is that of pairs."""

from __future__ import annotations

import pytest

from lib_accel.errors import TaskCancelled, TaskError
from lib_accel.painter import Wanted
from lib_accel.tasks.benchmark import benchmark
from lib_accel.tasks.task import Task
from tests.fakes.painter import FakePainter

WANTED = Wanted(width=64, height=64, steps=6)


def _twice_as_fast(is_accelerated: bool) -> float:
    return 10.0 if is_accelerated else 20.0


def test_the_ratio_is_stocks_time_by_ours() -> None:
    figures = benchmark(FakePainter(_twice_as_fast), WANTED, Task("benchmark")).value
    assert [(row.loras, row.stock_ms, row.ours_ms, row.ratio) for row in figures.rows] == [
        (loras, 20.0, 10.0, 2.0) for loras in (0, 1, 4)
    ]
    assert all(row.low <= row.ratio <= row.high for row in figures.rows)
    assert (figures.device, figures.width, figures.steps) == ("a fake", 64, 6)


def test_sides_take_turns_after_a_picture_of_each() -> None:
    painter = FakePainter()
    benchmark(painter, WANTED, Task("benchmark"), loras=(1,), pairs=2)
    order = "".join("B" if is_accelerated else "A" for _, is_accelerated in painter.drawn)
    assert order == "AB" + "BAAB" + "B"


def test_prompts_name_as_many_loras_as_the_row_says() -> None:
    painter = FakePainter()
    benchmark(painter, WANTED, Task("benchmark"), loras=(0, 2), pairs=1)
    assert [prompt.count("<lora:") for prompt, _ in painter.drawn] == [0, 0, 2, 2] * 2 + [0]


def test_the_last_picture_gives_the_weights_back() -> None:
    painter = FakePainter()
    benchmark(painter, WANTED, Task("benchmark"), loras=(4,), pairs=1)
    assert (painter.drawn[-1], painter.wanted[-1].steps) == (("", True), 1)


def test_progress_counts_pictures() -> None:
    seen: list[float] = []
    task = Task("benchmark", lambda stage: seen.append(task.report().done))
    painter = FakePainter()
    benchmark(painter, WANTED, task, loras=(0, 1), pairs=1)
    assert painter.sessions == [("benchmark", len(painter.drawn))]
    assert seen == sorted(seen)


def test_the_outcome_is_in_words() -> None:
    text = benchmark(FakePainter(_twice_as_fast), WANTED, Task("benchmark"), pairs=1).text
    assert text == "2.00x with no LoRA, 2.00x with 1 LoRA, 2.00x with 4 LoRAs"


def test_an_interruption_ends_it_without_figures() -> None:
    painter = FakePainter()
    painter.interrupt_at = 3
    with pytest.raises(TaskCancelled):
        benchmark(painter, WANTED, Task("benchmark"))
    assert not painter.is_open


def test_too_few_steps_are_refused_before_anything_is_drawn() -> None:
    painter = FakePainter()
    with pytest.raises(TaskError, match="got 5, expected 6 or more"):
        benchmark(painter, Wanted(steps=5), Task("benchmark"))
    assert painter.drawn == []


def test_steps_that_cannot_be_timed_are_told() -> None:
    with pytest.raises(TaskError, match="choose another sampler"):
        benchmark(FakePainter(lambda is_accelerated: None), WANTED, Task("benchmark"))
