"""Contests are held one after the other while nobody draws, and what ends a worker costs one contest."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lib_accel.tuning.contests import Contests, Job, contests_of_this_process
from lib_accel.tuning.process import End
from lib_accel.tuning.worker import Answer, Contest
from tests.tuning.calls import ARGS, ENOUGH_S, LARGER, LARGEST, QUICK, contest, wait_until
from tests.tuning.rooms import SCALED

FIRST, SECOND, THIRD = (contest(SCALED, args) for args in (ARGS, LARGER, LARGEST))
DIED = End("the process ended with -11", is_ours=False)
STOPPED = End("the process ended with -9", is_ours=True)


class FakeProcess:
    """A worker that answers at once, dies of what kills it, and hangs in what hangs until it has to stop."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.is_ended = False

    def await_ready(self, must_stop: Callable[[], bool]) -> bool | End:
        return self._place.readiness.pop(0) if self._place.readiness else True

    def ask(self, wanted: Contest, must_stop: Callable[[], bool]) -> Answer | End:
        self._place.asked.append(wanted)
        if wanted in self._place.killers:
            return DIED
        if wanted in self._place.hanging:
            wait_until(must_stop)
            return STOPPED
        return QUICK

    def end(self) -> None:
        self.is_ended = True


class Place:
    """Where contests are held, and what became of them."""

    def __init__(self) -> None:
        self.contests = Contests(self._start)  # type: ignore[arg-type]
        self.is_idle, self.looks = True, 0
        self.readiness: list[bool | End] = []  # of workers, if not at once
        self.killers: list[Contest] = []
        self.hanging: list[Contest] = []
        self.again: list[bool] = []  # whether the next that ends is wanted again
        self.workers: list[FakeProcess] = []
        self.asked: list[Contest] = []
        self.done: list[tuple[Contest, Answer | End]] = []
        self.fault: OSError | None = None

    def _start(self) -> FakeProcess:
        if self.fault is not None:
            raise self.fault
        self.workers.append(FakeProcess(self))
        return self.workers[-1]

    def submit(self, *wanted: Contest, owner: object = None) -> None:
        """Hands in a job for each, all of them before the first is held."""
        before, self.is_idle = self.is_idle, False
        for each in wanted:
            self.contests.submit(self._job(each, owner or self))
        self.is_idle = before

    def _job(self, wanted: Contest, owner: object) -> Job:
        def done(found: Answer | End) -> bool:
            self.done.append((wanted, found))
            return isinstance(found, End) and (found.is_ours or bool(self.again and self.again.pop()))

        return Job(owner, wanted, self._may_run, done)

    def _may_run(self) -> bool:
        self.looks += 1
        return self.is_idle

    def finish(self) -> None:
        """Waits until all is held, and the thread is gone."""
        assert self.contests.finish(self, ENOUGH_S)
        wait_until(lambda: not threads())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "accel-tuning"]


@pytest.fixture
def place() -> Place:
    return Place()


def test_contests_are_held_one_after_the_other_by_one_worker(place: Place) -> None:
    place.submit(FIRST, SECOND, THIRD)
    place.finish()
    assert place.asked == [FIRST, SECOND, THIRD]
    assert place.done == [(FIRST, QUICK), (SECOND, QUICK), (THIRD, QUICK)]
    assert [worker.is_ended for worker in place.workers] == [True]


def test_there_is_no_thread_before_there_is_something_to_do(place: Place) -> None:
    assert threads() == []
    place.is_idle = False
    place.submit(FIRST)
    assert [thread.daemon for thread in threads()] == [True]
    place.finish()


def test_nothing_is_held_while_somebody_draws(place: Place) -> None:
    place.is_idle = False
    place.submit(FIRST)
    wait_until(lambda: place.looks > 3)
    assert (place.contests.pending(place), place.workers) == (1, [])
    place.is_idle = True
    wait_until(lambda: place.contests.pending(place) == 0)


def test_a_worker_is_ended_when_somebody_draws_and_goes_on_later_with_what_is_left(place: Place) -> None:
    place.hanging = [SECOND]
    place.submit(FIRST, SECOND)
    wait_until(lambda: place.asked == [FIRST, SECOND])
    place.is_idle = False
    wait_until(lambda: len(place.done) == 2 and place.workers[0].is_ended)
    assert (place.done[-1], place.contests.pending(place), len(place.workers)) == ((SECOND, STOPPED), 1, 1)
    place.hanging, place.is_idle = [], True
    wait_until(lambda: place.contests.pending(place) == 0)
    assert place.done[2:] == [(SECOND, QUICK)]


def test_a_worker_that_dies_costs_its_own_contest_only(place: Place) -> None:
    place.killers = [FIRST]
    place.submit(FIRST, SECOND)
    place.finish()
    assert place.done == [(FIRST, DIED), (SECOND, QUICK)]
    assert [worker.is_ended for worker in place.workers] == [True, True]


def test_what_is_wanted_again_is_held_after_the_others(place: Place) -> None:
    place.killers, place.again = [FIRST], [True]
    place.submit(FIRST, SECOND)
    place.finish()
    assert place.asked == [FIRST, SECOND, FIRST]


def test_a_caller_who_waits_has_contests_held_whoever_draws(place: Place) -> None:
    place.is_idle = False
    place.submit(FIRST, SECOND)
    left: list[int] = []
    assert place.contests.finish(place, ENOUGH_S, left.append)
    assert (left[0], left[-1], len(place.done)) == (2, 0, 2)


def test_a_caller_waits_no_longer_than_it_said(place: Place) -> None:
    place.hanging = [FIRST]
    place.submit(FIRST)
    assert not place.contests.finish(place, 0.05)
    place.contests.cancel(place)
    place.finish()


def test_what_is_cancelled_is_not_held(place: Place) -> None:
    place.is_idle, other = False, object()
    place.submit(FIRST, SECOND)
    place.submit(THIRD, owner=other)
    place.contests.cancel(place)
    place.is_idle = True
    wait_until(lambda: place.contests.pending(other) == 0)
    assert place.asked == [THIRD]


def test_what_is_cancelled_while_it_is_held_is_ended_and_not_held_again(place: Place) -> None:
    place.hanging = [FIRST]
    place.submit(FIRST)
    wait_until(lambda: place.asked == [FIRST])
    place.contests.cancel(place)
    place.finish()
    assert place.done == [(FIRST, STOPPED)]
    assert place.asked == [FIRST]


def test_closing_ends_the_worker(place: Place) -> None:
    place.hanging = [FIRST]
    place.submit(FIRST, SECOND)
    wait_until(lambda: place.asked == [FIRST])
    place.contests.close()
    assert (threads(), place.workers[0].is_ended, place.asked) == ([], True, [FIRST])


def test_what_is_held_now_is_said(place: Place) -> None:
    place.hanging = [FIRST]
    place.submit(FIRST)
    wait_until(lambda: place.contests.holding is not None)
    assert place.contests.holding == "scaled"
    place.contests.close()
    assert place.contests.holding is None


def test_without_a_process_nothing_is_held_and_the_reason_is_kept(place: Place) -> None:
    place.fault = OSError(12, "Cannot allocate memory")
    place.submit(FIRST, SECOND)
    place.finish()
    assert place.contests.fault == "no process to hold contests in: [Errno 12] Cannot allocate memory"
    assert place.done == []


def test_after_a_fault_nothing_is_taken_and_nothing_started(place: Place) -> None:
    place.contests.fault = "no process"
    place.submit(FIRST)
    assert (place.contests.pending(place), threads()) == (0, [])


def test_a_worker_that_is_never_ready_is_a_fault_and_no_contests(place: Place) -> None:
    place.readiness = [End("the process ended with 1", is_ours=False)]
    place.submit(FIRST)
    place.finish()
    assert place.contests.fault == "no contest can be held: the process ended with 1 before it began"
    assert (place.asked, place.workers[0].is_ended) == ([], True)


def test_a_worker_that_is_stopped_before_it_is_ready_is_no_fault(place: Place) -> None:
    place.readiness = [STOPPED]
    place.submit(FIRST)
    place.finish()
    assert (place.contests.fault, place.done) == (None, [(FIRST, QUICK)])


def test_workers_that_end_for_nothing_follow_each_other_ever_more_slowly(place: Place) -> None:
    rests = []
    for held in (0, 0, 0, 1, 0):
        place.contests._held = held
        place.contests._rest()
        rests.append(place.contests._rest_s)
    assert rests == [2.0, 4.0, 8.0, 0.0, 2.0]


def test_a_worker_does_not_follow_at_once_on_one_that_ended_for_nothing(place: Place) -> None:
    place.readiness = [STOPPED]
    place.submit(FIRST)
    wait_until(lambda: place.contests._is_resting())
    assert (len(place.workers), place.contests.pending(place)) == (1, 1)
    place.finish()  # for somebody who waits, it does
    assert len(place.workers) == 2


def test_seconds_are_counted(place: Place) -> None:
    place.submit(FIRST)
    place.finish()
    assert place.contests.seconds > 0


def test_a_bug_in_who_is_told_lets_nobody_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(found: Answer | End) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    place.contests.submit(Job(place, FIRST, lambda: True, fail))
    place.finish()
    assert [worker.is_ended for worker in place.workers] == [True]


def test_engines_share_one_place() -> None:
    assert contests_of_this_process() is contests_of_this_process()
