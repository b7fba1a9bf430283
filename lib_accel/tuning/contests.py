"""Where contests wait: on a thread that has them held elsewhere, one after the other, while nobody draws."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from lib_accel.graphs.waiters import Waiters
from lib_accel.tuning.process import End, Process
from lib_accel.tuning.worker import Answer, Contest

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
_PATIENCE_S = 20.0  # at the end of the process

# After a worker that had to end before it was through with anything, the next one waits for so long, and
# twice as long each time: who draws a picture every few seconds would start one after each.
_SHORTEST_REST_S, _LONGEST_REST_S = 2.0, 120.0


class Job(NamedTuple):
    """A contest that is wanted, who wants it, and who is told of it."""

    owner: object
    contest: Contest
    may_run: Callable[[], bool]  # whether nobody is drawing
    done: Callable[[Answer | End], bool]  # whether it is wanted once more, after the others


class Contests:
    """Has contests held by a process that lives while there is something to do and nobody draws."""

    def __init__(self, start: Callable[[], Process] = Process) -> None:
        """`start`: a new worker; raises OSError if there can be none."""
        self._start = start
        self._jobs: list[Job] = []
        self._now: Job | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._waiters = Waiters(self._changed)  # callers of `finish`
        self.fault: str | None = None  # why there can be no contest in this process
        self.seconds = 0.0  # that workers took
        self._rest_s = 0.0  # before the next worker
        self._rests_until = 0.0
        self._held = 0  # contests by the latest worker

    def pending(self, owner: object) -> int:
        """How many contests of an owner are still to be held."""
        with self._changed:
            return sum(job.owner is owner for job in self._jobs)

    @property
    def holding(self) -> str | None:
        """The operator of the contest that is held now."""
        job = self._now
        return None if job is None else job.contest.call.operator

    def submit(self, job: Job) -> None:
        """Takes a job and returns at once; forgets it where there can be no contest."""
        with self._changed:
            if self.fault is not None:
                return
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="accel-tuning", daemon=True)
                self._thread.start()

    def cancel(self, owner: object) -> None:
        """Forgets what an owner wants."""
        with self._changed:
            self._jobs = [job for job in self._jobs if job.owner is not owner]
            self._changed.notify_all()

    def close(self) -> None:
        """Forgets everything and waits for the end of the worker."""
        with self._changed:
            self._jobs = []
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE_S)

    def finish(
        self, owner: object, timeout_s: float | None = None, tell: Callable[[int], None] | None = None
    ) -> bool:
        """Has all contests that an owner wants held now, whoever draws; whether that was done in time.

        `tell` hears what is left.
        """
        return self._waiters.wait(lambda: self.pending(owner), timeout_s, tell)

    def _work(self) -> None:
        try:
            while self._is_wanted():
                self._hold_some()
        finally:
            with self._changed:
                if self._thread is threading.current_thread():  # a bug ends it: nobody shall wait for it
                    self._jobs, self._now, self._thread = [], None, None
                    self._changed.notify_all()

    def _is_wanted(self) -> bool:
        """Waits until a contest may be held; False if none is wanted any more, which ends the thread."""
        with self._changed:
            while self._jobs and (self._next() is None or self._is_resting()):
                self._changed.wait(_LOOK_EVERY_S)
            if not self._jobs:
                self._thread = None
            return bool(self._jobs)

    def _hold_some(self) -> None:
        """Holds contests by one worker, until it ends or has to."""
        try:
            process = self._start()
        except OSError as error:
            self._give_up(f"no process to hold contests in: {error}")
            return
        began, self._held = time.monotonic(), 0
        try:
            found = process.await_ready(lambda: self._next() is None)
            if isinstance(found, End):
                if not found.is_ours:
                    self._give_up(f"no contest can be held: {found.reason} before it began")
                return
            while (job := self._next()) is not None and self._hold(process, job):
                pass
        finally:
            process.end()
            self.seconds += time.monotonic() - began
            self._rest()

    def _is_resting(self) -> bool:
        return not self._waiters and time.monotonic() < self._rests_until

    def _rest(self) -> None:
        longer_s = max(_SHORTEST_REST_S, min(_LONGEST_REST_S, 2 * self._rest_s))
        self._rest_s = 0.0 if self._held else longer_s
        self._rests_until = time.monotonic() + self._rest_s

    def _next(self) -> Job | None:
        """The first that may be held now."""
        with self._changed:
            return next((job for job in self._jobs if self._may_hold(job)), None)

    def _may_hold(self, job: Job) -> bool:
        return bool(self._waiters) or job.may_run()

    def _must_stop(self, job: Job) -> bool:
        with self._changed:
            return not (any(each is job for each in self._jobs) and self._may_hold(job))

    def _hold(self, process: Process, job: Job) -> bool:
        """Holds a contest; whether the worker still lives."""
        self._now = job
        found = process.ask(job.contest, lambda: self._must_stop(job))
        if is_over := isinstance(found, End):
            _log.info("a contest of %s was not held: %s", job.contest.call.operator, found)
        is_wanted_again = False
        try:
            is_wanted_again = job.done(found)
        finally:
            with self._changed:
                self._now = None
                left = [each for each in self._jobs if each is not job]
                is_wanted_again &= len(left) < len(self._jobs)  # or it was cancelled
                self._jobs = left + [job] * is_wanted_again
                self._changed.notify_all()
        self._held += not is_over
        return not is_over

    def _give_up(self, reason: str) -> None:
        _log.warning("operators stay as they are: %s", reason)
        with self._changed:
            self.fault, self._jobs = reason, []
            self._changed.notify_all()


@functools.cache
def contests_of_this_process() -> Contests:
    """What engines share: two contests at once would disturb each other."""
    contests = Contests()
    atexit.register(contests.close)
    return contests
