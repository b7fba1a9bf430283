"""Graphs are made while nothing else goes on, each once, and one that fails elsewhere is not tried here."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Generator, Sequence

import pytest

from lib_accel.errors import CompileError
from lib_accel.graphs.activity import Activity, activity_of_this_process
from lib_accel.graphs.compiler import Compiler, Graph
from lib_accel.graphs.structure import Condition, Sizes, Structure
from lib_accel.graphs.worker import Part
from lib_accel.graphs.workshop import Helper, Job, Workshop, workshop_of_this_process
from tests.graphs.small import Backends, calls, part, residual, transformer

ENOUGH_S = 60.0  # for anything here, on any machine

PARTS = [part(block, calls(block)[0]) for block in (residual(), transformer(), residual(out=8))]
FIRST = part(residual(out=4), calls(residual(out=4))[0])  # keeps a workshop busy while others are handed in


class FakeCompiler(Compiler):
    """Makes graphs of nothing, and notes which."""

    def __init__(self) -> None:
        super().__init__(Backends())
        self.made: list[Part] = []
        self.failing: list[Structure] = []

    def prepare(self, structure: Structure, condition: Condition, sizes: Sizes) -> Graph:
        self.made.append(Part(structure, condition, sizes))
        if structure in self.failing:
            raise CompileError(f"{structure}: no")
        return Graph(structure, condition, Backends()(condition))


class FakeHelper:
    """Answers each time as it was told to, and then for all that was asked; too few answers are a death."""

    def __init__(self, *answers: list[str | None]) -> None:
        self._answers = list(answers)
        self.asked: list[list[Part]] = []
        self.stop = threading.Event()
        self.answered = self.closed = 0

    def __call__(self, parts: Sequence[Part], stop: threading.Event) -> Generator[str | None, None, None]:
        self.asked.append(list(parts))
        self.stop = stop
        try:
            for answer in self._answers.pop(0) if self._answers else [None] * len(parts):
                self.answered += 1
                yield answer
        finally:
            self.closed += 1


def wait_until(holds: Callable[[], bool]) -> None:
    """For what another thread does."""
    last = time.monotonic() + ENOUGH_S
    while not holds():
        assert time.monotonic() < last
        time.sleep(0.001)


def threads() -> list[threading.Thread]:
    """Those of all workshops."""
    return [thread for thread in threading.enumerate() if thread.name == "accel-compile"]


class Quiet(Activity):
    """Is idle or not as it was told."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def is_idle(self) -> bool:
        self._place.asked += 1
        return self._place.is_idle


class Place:
    """A workshop, and what became of its jobs."""

    def __init__(self, helper: Helper | None = None, *, is_idle: bool = True, is_busy: bool = False) -> None:
        self.compiler, self.is_idle, self.is_busy = FakeCompiler(), is_idle, is_busy
        self.workshop = Workshop(self.compiler, Quiet(self), helper)
        self.asked = 0  # whether no model is called
        self.begun: list[Part] = []
        self.done: list[tuple[Part, Graph | CompileError]] = []

    def submit(
        self, *parts: Part, done: Callable[[], object] = lambda: None, owners: Sequence[object] = ()
    ) -> None:
        """Hands in a job for each, all of them before the first is begun, of this place or of `owners`."""
        gate = threading.Event()
        before, self.is_idle, self.is_busy = (self.is_idle, self.is_busy), True, False
        first = Job(self, FIRST, lambda: False, lambda: gate.wait(ENOUGH_S) and None, lambda result: None)
        self.workshop.submit(first)
        wait_until(lambda: self.workshop.making is not None)
        self.is_idle, self.is_busy = before
        for each, owner in zip(parts, owners or [self] * len(parts), strict=True):
            self.workshop.submit(self._job(each, done, owner))
        gate.set()

    def _job(self, wanted: Part, done: Callable[[], object], owner: object) -> Job:
        def note(result: Graph | CompileError) -> None:
            self.done.append((wanted, result))
            done()

        return Job(owner, wanted, lambda: self.is_busy, lambda: self.begun.append(wanted), note)

    @property
    def pending(self) -> int:
        """What is still to be made."""
        return self.workshop.pending(self)

    def cancel(self) -> None:
        """Forgets what is still to be made."""
        self.workshop.cancel(self)

    def finish(self) -> None:
        """Waits until all is made, and the thread is gone."""
        assert self.workshop.finish(self, ENOUGH_S)
        for thread in threads():
            thread.join(ENOUGH_S)

    @property
    def made(self) -> list[Part]:
        """What the compiler was asked for."""
        return [wanted for wanted in self.compiler.made if wanted != FIRST]

    @property
    def reasons(self) -> list[str | None]:
        """Why each job failed, in order, None for those that did not."""
        return [str(result) if isinstance(result, CompileError) else None for _, result in self.done]


def test_graphs_are_made_one_after_the_other_and_told() -> None:
    place = Place()
    place.submit(*PARTS)
    place.finish()
    assert place.made == place.begun == [wanted for wanted, _ in place.done] == PARTS
    assert place.reasons == [None, None, None]


def test_a_part_that_fails_is_told_and_the_others_are_made() -> None:
    place = Place()
    place.compiler.failing = [PARTS[0].structure]
    place.submit(*PARTS)
    place.finish()
    assert place.reasons == [f"{PARTS[0].structure}: no", None, None]


def test_jobs_that_come_later_are_made_by_another_thread() -> None:
    place = Place()
    place.submit(PARTS[0])
    place.finish()
    assert not threads()
    place.submit(PARTS[1])
    place.finish()
    assert place.begun == PARTS[:2]


def test_the_thread_ends_with_the_work_and_ends_with_the_program() -> None:
    place, daemons = Place(), []
    place.submit(PARTS[0], done=lambda: daemons.append(threading.current_thread().daemon))
    place.finish()
    assert daemons == [True]
    assert not threads()


def test_what_is_made_and_what_is_left_can_be_asked() -> None:
    place, seen = Place(), []
    place.submit(*PARTS, done=lambda: seen.append((place.workshop.making, place.pending)))
    place.finish()
    assert seen == [(str(wanted.structure), left) for wanted, left in zip(PARTS, (3, 2, 1), strict=True)]
    assert (place.workshop.making, place.pending) == (None, 0)


def test_a_job_that_breaks_the_thread_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    place = Place()
    place.submit(*PARTS, done=lambda: 1 // 0)
    assert place.workshop.finish(place, ENOUGH_S)
    place.submit(PARTS[1])
    place.finish()
    assert (len(broken), place.begun) == (1, PARTS[:2])


# When


def test_nothing_is_made_while_a_model_is_called() -> None:
    place = Place(is_idle=False)
    place.submit(*PARTS)
    assert not place.workshop.finish(place, 0.0)
    asked = place.asked
    wait_until(lambda: place.asked > asked + 3)  # the thread looked whether it may
    assert (place.begun, place.pending) == ([], 3)
    place.cancel()
    place.finish()


def test_nothing_is_made_while_the_owner_draws() -> None:
    place = Place(is_busy=True)
    place.submit(*PARTS)
    wait_until(lambda: place.pending == 3)
    asked = place.asked
    wait_until(lambda: place.asked > asked + 3)
    assert place.begun == []
    place.is_busy = False
    wait_until(lambda: len(place.done) == 3)
    place.finish()


def test_graphs_are_made_as_soon_as_no_model_is_called() -> None:
    place = Place(is_idle=False)
    place.submit(*PARTS)
    place.is_idle = True
    wait_until(lambda: len(place.done) == 3)
    place.finish()


def test_what_is_asked_for_is_made_even_while_a_model_is_called() -> None:
    place = Place(is_idle=False)
    place.submit(*PARTS)
    place.finish()
    assert place.begun == PARTS


def test_only_what_is_waited_for_is_urgent() -> None:
    place = Place(is_idle=False)
    place.submit(PARTS[0])
    place.finish()
    place.submit(PARTS[1])
    wait_until(lambda: place.pending == 1)
    assert place.begun == PARTS[:1]
    place.cancel()
    place.finish()


def test_finishing_tells_what_is_left() -> None:
    place, left = Place(is_idle=False), []
    place.submit(*PARTS)
    assert place.workshop.finish(place, ENOUGH_S, left.append)
    assert (left[0], left[-1], left) == (left[0], 0, sorted(left, reverse=True))
    assert set(left) <= {4, 3, 2, 1, 0}


def test_finishing_nothing_is_done_at_once() -> None:
    place, left = Place(), []
    assert place.workshop.finish(place, tell=left.append)
    assert left == [0]


def test_finishing_in_too_little_time_says_so() -> None:
    place, gate = Place(), threading.Event()
    place.submit(*PARTS, done=lambda: gate.wait(ENOUGH_S))
    assert not place.workshop.finish(place, 0.01)
    assert place.pending >= 2
    gate.set()
    place.finish()


def test_everybody_is_told_before_a_finish_returns() -> None:
    place = Place()
    place.submit(*PARTS)
    assert place.workshop.finish(place, ENOUGH_S)
    assert len(place.done) == 3
    place.finish()


# Cancelled


def test_a_job_that_was_cancelled_is_neither_begun_nor_told() -> None:
    place = Place(is_idle=False)
    place.submit(*PARTS)
    wait_until(lambda: place.pending == 3)
    place.cancel()
    assert place.pending == 0
    place.finish()
    assert (place.begun, place.done) == ([], [])


def test_a_job_that_is_being_made_is_not_cancelled() -> None:
    place = Place()
    place.submit(*PARTS, done=place.cancel)
    place.finish()
    assert [wanted for wanted, _ in place.done] == PARTS[:1]


def test_jobs_after_a_cancel_are_made() -> None:
    place = Place()
    place.submit(PARTS[0], PARTS[1], done=place.cancel)
    place.finish()
    place.submit(PARTS[2])
    place.finish()
    assert place.begun == [PARTS[0], PARTS[2]]


def test_a_helper_is_not_kept_at_cancelled_work() -> None:
    helper = FakeHelper([None], [None, None, None])
    place = Place(helper)
    place.submit(*PARTS, done=place.cancel)
    place.finish()
    assert (helper.asked, helper.closed) == ([[FIRST], PARTS], 2)
    assert helper.answered == 2


def test_a_cancelled_job_is_not_told_that_it_failed() -> None:
    place = Place(FakeHelper([None], ["first", "second", None]))
    place.submit(*PARTS, done=place.cancel)
    place.finish()
    assert place.reasons == ["first"]


def test_jobs_of_another_owner_survive_a_cancel() -> None:
    place, other = Place(is_idle=False), object()
    place.submit(*PARTS, owners=[place, other, place])
    wait_until(lambda: place.pending == 2)
    place.cancel()
    assert (place.pending, place.workshop.pending(other)) == (0, 1)
    assert place.workshop.finish(other, ENOUGH_S)
    assert place.begun == [wanted for wanted, _ in place.done] == PARTS[1:2]


def test_finishing_does_not_wait_for_another_owner() -> None:
    place, other, gate = Place(), object(), threading.Event()
    place.submit(*PARTS[:2], owners=[place, other], done=lambda: place.pending or gate.wait(ENOUGH_S))
    assert place.workshop.finish(other, 0.0) is False
    assert place.workshop.pending(other) == 1
    gate.set()
    assert place.workshop.finish(other, ENOUGH_S)
    place.finish()


class HangingHelper:
    """Answers to the first job, and then not until it is to stop."""

    def __init__(self) -> None:
        self.hanging = threading.Event()

    def __call__(self, parts: Sequence[Part], stop: threading.Event) -> Generator[str | None, None, None]:
        if parts != [FIRST]:
            self.hanging.set()
            assert stop.wait(ENOUGH_S)
            yield "it was ended"
        yield None


@pytest.mark.parametrize("end", [Place.cancel, lambda place: place.workshop.close()], ids=["cancel", "close"])
def test_a_helper_that_hangs_is_told_to_stop(end: Callable[[Place], None]) -> None:
    helper = HangingHelper()
    place = Place(helper)
    place.submit(*PARTS)
    assert helper.hanging.wait(ENOUGH_S)
    end(place)
    place.finish()
    assert (place.begun, place.done) == ([], [])


def test_a_helper_that_works_for_another_owner_too_is_not_told_to_stop() -> None:
    other, helper = object(), FakeHelper()
    place = Place(helper)
    stopped: list[bool] = []
    place.submit(*PARTS[:2], owners=[place, other], done=lambda: stopped.append(helper.stop.is_set()))
    place.cancel()
    assert place.workshop.finish(other, ENOUGH_S)
    assert not any(stopped)
    place.finish()


def test_jobs_after_a_helper_was_told_to_stop_have_another() -> None:
    helper = FakeHelper()
    place = Place(helper)
    place.submit(PARTS[0], done=lambda: place.workshop.cancel(place))
    place.finish()
    place.workshop.close()
    place.submit(PARTS[1])
    place.finish()
    assert place.reasons == [None, None]
    assert not helper.stop.is_set()


# Closed


def test_closing_forgets_the_jobs_of_all_owners() -> None:
    place, other = Place(is_idle=False), object()
    place.submit(*PARTS, owners=[place, other, place])
    wait_until(lambda: place.pending == 2)
    place.workshop.close()
    assert (place.pending, place.workshop.pending(other), place.begun) == (0, 0, [])
    assert not threads()


def test_closing_waits_for_what_is_being_made_and_begins_nothing_more() -> None:
    helper = FakeHelper()
    place = Place(helper)
    reached = threading.Event()

    def until_closed() -> None:
        reached.set()
        assert helper.stop.wait(ENOUGH_S)

    place.submit(*PARTS, done=until_closed)
    assert reached.wait(ENOUGH_S)
    place.workshop.close()
    assert not threads()
    assert [wanted for wanted, _ in place.done] == PARTS[:1]


def test_closing_twice_or_without_any_job_does_nothing() -> None:
    place = Place()
    for _ in range(2):
        place.workshop.close()
    assert not threads()


def test_the_workshop_of_a_process_is_closed_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[object] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    workshop = workshop_of_this_process.__wrapped__()  # as if it was the first time
    assert registered == [workshop.close]


def test_engines_of_a_process_share_a_workshop_and_its_activity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atexit, "register", lambda call: None)
    assert workshop_of_this_process() is workshop_of_this_process()
    assert workshop_of_this_process().activity is activity_of_this_process()


# With a helper


def test_a_helper_is_asked_for_all_at_once() -> None:
    helper = FakeHelper()
    place = Place(helper)
    place.submit(*PARTS)
    place.finish()
    assert helper.asked == [[FIRST], PARTS]
    assert place.made == PARTS


def test_a_part_that_fails_elsewhere_is_not_tried_here() -> None:
    place = Place(FakeHelper([None], [None, "it crashed", None]))
    place.submit(*PARTS)
    place.finish()
    assert place.reasons == [None, "it crashed", None]
    assert place.made == place.begun == [PARTS[0], PARTS[2]]


def test_a_helper_is_not_started_while_a_model_is_called() -> None:
    helper = FakeHelper()
    place = Place(helper, is_idle=False)
    place.submit(*PARTS)
    wait_until(lambda: place.pending == 3)
    asked = place.asked
    wait_until(lambda: place.asked > asked + 3)  # the thread looked whether it may
    assert helper.asked == [[FIRST]]
    place.is_idle = True
    place.finish()
    assert helper.asked == [[FIRST], PARTS]


def test_a_helper_is_started_for_what_is_waited_for_though_a_model_is_called() -> None:
    helper = FakeHelper()
    place = Place(helper, is_idle=False)
    place.submit(*PARTS)
    place.finish()
    assert helper.asked == [[FIRST], PARTS]


def test_a_helper_that_runs_may_answer_while_a_model_is_called_but_nothing_is_made() -> None:
    helper = FakeHelper()

    def start(parts: Sequence[Part], stop: threading.Event) -> Generator[str | None, None, None]:
        place.is_idle = parts == [FIRST]
        return helper(parts, stop)

    place = Place(start)
    place.submit(*PARTS)
    wait_until(lambda: helper.answered == 2)
    assert place.begun == []
    place.cancel()
    place.finish()


def test_a_helper_is_not_asked_for_what_was_cancelled_before_it_was_started() -> None:
    helper, other = FakeHelper(), object()
    place = Place(helper, is_idle=False)
    place.submit(*PARTS, owners=[place, other, place])
    wait_until(lambda: place.pending == 2)
    place.cancel()
    assert place.workshop.finish(other, ENOUGH_S)
    assert helper.asked == [[FIRST], PARTS[1:2]]
    assert place.made == PARTS[1:2]


def test_what_a_helper_did_not_come_to_is_asked_of_another() -> None:
    helper = FakeHelper([None], [None, "it ended"], [None])
    place = Place(helper)
    place.submit(*PARTS)
    place.finish()
    assert helper.asked == [[FIRST], PARTS, PARTS[2:]]
    assert place.reasons == [None, "it ended", None]


def test_a_helper_that_answers_nothing_is_not_asked_again() -> None:
    helper = FakeHelper([None], [])
    place = Place(helper)
    place.submit(*PARTS)
    place.finish()
    assert helper.asked == [[FIRST], PARTS]
    assert place.made == PARTS


def test_without_any_helper_everything_is_made_here() -> None:
    def refuse(parts: Sequence[Part], stop: threading.Event) -> Generator[str | None, None, None]:
        raise CompileError("no process to compile in")
        yield

    place = Place(refuse)
    place.submit(*PARTS)
    place.finish()
    assert place.made == PARTS
    assert place.reasons == [None, None, None]
