"""A task tells how far it is, ends when it is cancelled, and is alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lib_accel.errors import TaskCancelled, TaskError
from lib_accel.tasks.task import Outcome, Task, TaskReport, Tasks

_LONG_S = 10.0


def _report(tasks: Tasks) -> TaskReport:
    report = tasks.report()
    assert report is not None
    return report


def _ended(tasks: Tasks) -> TaskReport:
    for thread in threading.enumerate():
        if thread.name.startswith("accel-a "):
            thread.join(_LONG_S)
    assert not _report(tasks).is_running
    return _report(tasks)


class Held:
    """Work that goes on until a test lets it end."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self, task: Task) -> Outcome[int]:
        self.began.set()
        assert self.may_end.wait(_LONG_S)
        task.check()
        return Outcome(1, "done")


def test_nothing_ran_yet() -> None:
    assert Tasks().report() is None
    assert Tasks().cancel() is False


def test_what_the_work_gives_comes_back_and_is_told() -> None:
    tasks = Tasks()
    assert tasks.run(Task("a test"), lambda task: Outcome(7, "seven")) == 7
    report = _report(tasks)
    assert (report.name, report.done, report.outcome, report.error) == ("a test", 1.0, "seven", None)
    assert not report.is_running


def test_the_share_that_is_done_stays_in_bounds_and_never_falls() -> None:
    task, seen = Task("a test"), []
    for done in (0.2, 0.1, 5.0):
        task.tell("working", done)
        seen.append(task.report().done)
    assert seen == [0.2, 0.2, 1.0]


def test_the_time_left_is_guessed_once_something_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("lib_accel.tasks.task.time.monotonic", lambda: now)
    task = Task("a test")
    assert task.report().left_s is None
    now = 110.0
    task.tell("working", 0.25)
    assert task.report().left_s == pytest.approx(30.0)


def test_each_stage_is_shown_once() -> None:
    shown: list[str] = []
    task = Task("a test", shown.append)
    for stage, done in (("one", 0.1), ("one", 0.2), ("two", 0.3)):
        task.tell(stage, done)
    assert shown == ["one", "two"]


def test_a_cancelled_task_ends_at_its_next_word() -> None:
    tasks = Tasks()

    def work(task: Task) -> Outcome[None]:
        assert tasks.cancel()
        task.tell("on", 0.5)
        raise AssertionError("not reached")

    with pytest.raises(TaskCancelled, match="a test was cancelled"):
        tasks.run(Task("a test"), work)
    assert _report(tasks).error == "the a test was cancelled"


def test_a_cancelled_task_is_called_so_however_it_ended() -> None:
    tasks = Tasks()

    def work(task: Task) -> Outcome[None]:
        tasks.cancel()
        raise TaskCancelled("the picture was interrupted")

    with pytest.raises(TaskCancelled):
        tasks.run(Task("a test"), work)
    assert _report(tasks).error == "the a test was cancelled"


def test_a_second_task_is_refused_while_one_runs() -> None:
    tasks, held = Tasks(), Held()
    tasks.start(Task("a first"), held)
    assert held.began.wait(_LONG_S)
    with pytest.raises(TaskError, match="a first is running; wait for it, or cancel it"):
        tasks.run(Task("a second"), lambda task: Outcome(0, ""))
    held.may_end.set()
    assert _ended(tasks).outcome == "done"
    assert tasks.run(Task("a third"), lambda task: Outcome(3, "")) == 3


def test_a_task_on_a_thread_can_be_cancelled() -> None:
    tasks, held = Tasks(), Held()
    tasks.start(Task("a test"), held)
    assert tasks.cancel()
    held.may_end.set()
    assert _ended(tasks).error == "the a test was cancelled"


@pytest.mark.parametrize("run", [Tasks.run, Tasks.start])
def test_an_error_ends_the_task_and_is_told(
    caplog: pytest.LogCaptureFixture, run: Callable[[Tasks, Task, Any], Any]
) -> None:
    tasks = Tasks()

    def work(task: Task) -> Outcome[None]:
        raise ZeroDivisionError("by a test")

    with caplog.at_level(logging.ERROR):
        if run is Tasks.run:
            with pytest.raises(ZeroDivisionError):
                run(tasks, Task("a test"), work)
        else:
            run(tasks, Task("a test"), work)
    assert _ended(tasks).error == "by a test"
    assert ("ZeroDivisionError" in caplog.text) is (run is Tasks.start)
