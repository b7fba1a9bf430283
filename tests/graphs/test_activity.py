"""Whether models are being called is known from calls on all threads, and from when the latest ended."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from lib_accel.graphs import activity as activity_module
from lib_accel.graphs.activity import Activity, activity_of_this_process


class Clock:
    """The time, which passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every activity."""
    clock = Clock()
    monkeypatch.setattr(activity_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_nobody_has_called_yet(clock: Clock) -> None:
    assert Activity().is_idle()


def test_it_is_not_idle_while_a_call_runs(clock: Clock) -> None:
    activity = Activity(idle_after_s=0.0)
    activity.enter()
    clock.now_s += 3600.0
    assert not activity.is_idle()


def test_it_is_idle_some_time_after_the_latest_call(clock: Clock) -> None:
    activity, found = Activity(idle_after_s=2.0), []
    activity.enter()
    activity.leave()
    for _ in range(3):
        found.append(activity.is_idle())
        clock.now_s += 1.5
    assert found == [False, False, True]


def test_between_two_steps_it_is_not_idle(clock: Clock) -> None:
    activity, found = Activity(idle_after_s=2.0), []
    for _ in range(5):
        activity.enter()
        activity.leave()
        clock.now_s += 1.0
        found.append(activity.is_idle())
    assert not any(found)


def test_a_call_within_a_call_does_not_end_it(clock: Clock) -> None:
    activity = Activity(idle_after_s=0.0)
    activity.enter()
    activity.enter()
    activity.leave()
    clock.now_s += 1.0
    assert not activity.is_idle()
    activity.leave()
    clock.now_s += 1.0
    assert activity.is_idle()


def test_a_call_on_another_thread_counts(clock: Clock) -> None:
    activity = Activity(idle_after_s=0.0)
    for change, expected in ((activity.enter, False), (activity.leave, True)):
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
        clock.now_s += 1.0
        assert activity.is_idle() is expected


def test_calls_of_many_threads_at_once_are_all_counted(clock: Clock) -> None:
    activity = Activity(idle_after_s=0.0)

    def call() -> None:
        for _ in range(1000):
            activity.enter()
            activity.leave()

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now_s += 1.0
    assert activity.is_idle()


def test_engines_of_a_process_share_one() -> None:
    assert activity_of_this_process() is activity_of_this_process()
