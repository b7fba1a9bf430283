"""A warm-up draws, compiles what that asked for, proves it, and can be ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lib_accel.errors import TaskCancelled, TaskError
from lib_accel.painter import Wanted
from lib_accel.tasks.task import Task
from lib_accel.tasks.warm_up import warm_up
from tests.fakes.host import FakeHost, attached
from tests.fakes.models import inputs, run, tiny_unet
from tests.fakes.painter import FakePainter

WANTED = Wanted(width=64, height=128, batch_size=2)


class FakeEngine:
    """An engine whose first picture asks for graphs, each of which takes a proof in a later picture.

    contests: how many are asked for, by picture; every other one finds something faster than torch.
    """

    def __init__(self, painter: FakePainter, graphs: int, contests: Sequence[int] = ()) -> None:
        self.pending, self.made, self.unproved = 0, 0, 0
        self.generations = 0
        self.captures, self.captures_a_picture = 3, 0
        self.cases = [_case("torch", {"torch": 1.0})]  # one that was measured before
        self.contests = 0
        self._graphs, self._contests = graphs, [*contests]
        painter.on_draw = self._drawn

    def _drawn(self) -> None:
        if self.generations == 1:
            self.pending = self._graphs
        if self._contests:
            self.contests += self._contests.pop(0)
        self.unproved = max(0, self.unproved - 1)
        self.captures += self.captures_a_picture

    def begin_generation(self) -> None:
        self.generations += 1

    def warm_up(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        assert tell is not None
        while self.pending:
            tell(self.pending + self.contests)
            self.pending, self.made, self.unproved = self.pending - 1, self.made + 1, self.unproved + 1
        while self.contests:
            tell(self.contests)
            self.contests -= 1
            self.cases.append(_case("Triton" if self.contests % 2 else "torch", {"torch": 1.0}))
        tell(0)
        return True

    def report(self) -> Any:
        cases = [SimpleNamespace(reason="to be proved")] * self.unproved
        graphs = SimpleNamespace(graphs=self.made, pending=self.pending, cases=cases)
        launches = SimpleNamespace(captures=self.captures)
        tuning = SimpleNamespace(pending=self.contests, cases=[*self.cases])
        told = {"enabled": True, "stand_aside": [], "graphs": graphs, "launches": launches, "tuning": tuning}
        return SimpleNamespace(**told)


def _case(chosen: str, ms: dict[str, float]) -> Any:
    return SimpleNamespace(next_chosen=chosen, ms=ms)


def test_what_is_captured_in_a_second_picture_is_warm_too() -> None:
    painter = FakePainter()
    engine: Any = FakeEngine(painter, 0)
    engine.captures_a_picture = 2
    outcome = warm_up(engine, painter, WANTED, Task("warm-up"))
    assert (outcome.value.pictures, outcome.value.captures) == (2, 4)
    assert "nothing to compile, 4 CUDA graphs captured" in outcome.text


def test_direct_code_is_warm_after_one_picture() -> None:
    painter, host, unet = FakePainter(), FakeHost(), tiny_unet()
    with attached(host) as engine:
        painter.on_draw = lambda: run(unet, inputs())
        outcome = warm_up(engine, painter, WANTED, Task("warm-up"))
    assert (outcome.value.pictures, outcome.value.graphs) == (1, 0)
    assert outcome.text == "ready: a picture drawn, nothing to compile, 100.00 it/s"
    assert painter.wanted == [WANTED]


def test_graphs_are_made_and_proved_and_then_drawn_with() -> None:
    painter, task = FakePainter(), Task("warm-up")
    engine: Any = FakeEngine(painter, graphs=3)
    done = warm_up(engine, painter, WANTED, task).value
    assert (done.graphs, done.pictures, engine.unproved) == (3, 5, 0)
    assert engine.generations == done.pictures + 1  # choices take effect between pictures, and after the last


def test_operators_are_measured_and_then_drawn_with() -> None:
    painter = FakePainter()
    engine: Any = FakeEngine(painter, 0, contests=[5])
    outcome = warm_up(engine, painter, WANTED, Task("warm-up"))
    done = outcome.value
    assert (done.operators, done.others, done.pictures, engine.contests) == (5, 2, 2, 0)
    assert "5 operators measured, 2 operators by another implementation than torch" in outcome.text


def test_calls_that_a_memory_format_brings_are_measured_too() -> None:
    painter = FakePainter()
    engine: Any = FakeEngine(painter, 0, contests=[5, 3])
    done = warm_up(engine, painter, WANTED, Task("warm-up")).value
    assert (done.operators, done.pictures) == (8, 3)


def test_pictures_that_ask_for_more_each_time_come_to_an_end() -> None:
    painter = FakePainter()
    engine: Any = FakeEngine(painter, 0, contests=[1] * 50)
    done = warm_up(engine, painter, WANTED, Task("warm-up")).value
    assert (done.pictures, done.operators, engine.contests) == (4, 4, 0)


def test_operators_that_were_measured_before_are_told_without_another_picture() -> None:
    painter = FakePainter()
    engine: Any = FakeEngine(painter, 0)
    engine.cases.append(_case("Triton", {"torch": 1.0, "Triton": 0.5}))
    outcome = warm_up(engine, painter, WANTED, Task("warm-up"))
    assert outcome.text == (
        "ready: a picture drawn, nothing to compile, 1 operator by another implementation than torch, "
        "100.00 it/s"
    )


@pytest.mark.parametrize(
    ("graphs", "contests", "said"),
    [
        (0, [3], "measuring: 2 of 3 operators left"),
        (2, [3], "measuring and compiling: 4 of 5 operators and graphs left"),
    ],
)
def test_progress_says_what_is_measured(graphs: int, contests: list[int], said: str) -> None:
    painter, seen = FakePainter(), []
    task = Task("warm-up", seen.append)
    warm_up(FakeEngine(painter, graphs, contests), painter, WANTED, task)  # type: ignore[arg-type]
    assert said in seen
    assert "drawing with what was measured" in seen


def test_what_these_pictures_do_not_prove_is_left_for_others() -> None:
    painter = FakePainter()
    engine: Any = FakeEngine(painter, graphs=1)
    painter.on_draw = lambda: setattr(engine, "pending", int(engine.generations == 1))
    done = warm_up(engine, painter, WANTED, Task("warm-up")).value
    assert (engine.unproved, done.pictures) == (1, 3)


def test_progress_grows_through_all_stages() -> None:
    painter, seen = FakePainter(), []
    task = Task("warm-up", lambda stage: seen.append((stage, task.report().done)))
    warm_up(FakeEngine(painter, graphs=2), painter, WANTED, task)  # type: ignore[arg-type]
    stages = [stage for stage, _ in seen]
    assert stages[0] == "drawing a first picture"
    assert "compiling: 1 of 2 graphs left" in stages
    assert stages[-1] == "drawing a last picture"
    assert [done for _, done in seen] == sorted(done for _, done in seen)


def test_cancelling_ends_it_while_it_compiles() -> None:
    painter = FakePainter()
    task = Task("warm-up", lambda stage: task.cancel() if stage.startswith("compiling") else None)
    engine: Any = FakeEngine(painter, graphs=5)
    with pytest.raises(TaskCancelled):
        warm_up(engine, painter, WANTED, task)
    assert engine.pending > 0
    assert not painter.is_open


def test_an_interruption_in_the_program_ends_it() -> None:
    painter = FakePainter()
    painter.interrupt_at = 0
    with attached() as engine, pytest.raises(TaskCancelled, match="interrupted by a test"):
        warm_up(engine, painter, WANTED, Task("warm-up"))


def test_it_is_refused_where_acceleration_is_off() -> None:
    host, painter = FakeHost(), FakePainter()
    with attached(host) as engine, host.switched_off(), pytest.raises(TaskError, match="Settings, Accel"):
        warm_up(engine, painter, WANTED, Task("warm-up"))
    assert painter.drawn == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 63}, "64 to 2048"),
        ({"height": 65}, "multiple of 8"),
        ({"steps": 0}, "1 to 150"),
        ({"batch_size": 1.5}, "1.5"),
    ],
)
def test_sizes_out_of_range_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        Wanted(**wrong)
