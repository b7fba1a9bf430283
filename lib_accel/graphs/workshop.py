"""Where graphs are made: on a thread while no model is called, the long part of it in another process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import pickle
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from lib_accel.errors import CompileError
from lib_accel.graphs.activity import Activity, activity_of_this_process
from lib_accel.graphs.compiler import Compiler, Graph
from lib_accel.graphs.waiters import Waiters
from lib_accel.graphs.worker import Part, compile_elsewhere

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05

_PATIENCE_S = 20.0  # at the end of the process: a thread that is in torch then would abort it

# Makes the graphs of parts elsewhere, so that to make them here takes little; see compile_elsewhere.
Helper = Callable[[Sequence[Part], threading.Event], Generator[str | None, None, None]]


class Job(NamedTuple):
    """A graph that is wanted, who wants it, and who is told of it."""

    owner: object
    part: Part
    is_busy: Callable[[], bool]  # whether the owner is drawing, even if no model is called right now
    begin: Callable[[], None]
    done: Callable[[Graph | CompileError], None]


class Workshop:
    """Makes graphs one after the other, on a daemon thread that lives while there is something to do."""

    def __init__(
        self, compiler: Compiler, activity: Activity, helper: Helper | None = compile_elsewhere
    ) -> None:
        """`activity`: of the models of this process; `helper`: None makes everything in this process."""
        self.compiler, self.activity = compiler, activity
        self._helper = helper
        self._jobs: list[Job] = []
        self._now: Job | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # ends the helper's process
        self._changed = threading.Condition()
        self._waiters = Waiters(self._changed)  # callers of `finish`

    def pending(self, owner: object) -> int:
        """How many graphs of an owner are still to be made."""
        with self._changed:
            return sum(job.owner is owner for job in self._jobs)

    @property
    def making(self) -> str | None:
        """What is being made now."""
        job = self._now
        return None if job is None else str(job.part.structure)

    def submit(self, job: Job) -> None:
        """Takes a job and returns at once."""
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="accel-compile", daemon=True)
                self._thread.start()

    def cancel(self, owner: object) -> None:
        """Forgets what an owner wants, but for what is being made in this process."""
        with self._changed:
            self._jobs = [job for job in self._jobs if job.owner is not owner or job is self._now]
            if not self._jobs:
                self._stop.set()
            self._changed.notify_all()

    def close(self) -> None:
        """Forgets everything, ends the helper, and waits for what is being made in this process."""
        with self._changed:
            self._jobs = [job for job in self._jobs if job is self._now]
            self._stop.set()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE_S)

    def finish(
        self, owner: object, timeout_s: float | None = None, tell: Callable[[int], None] | None = None
    ) -> bool:
        """Has all that an owner wants made now, idle or not; whether that was done in time.

        `tell` hears what is left.
        """
        return self._waiters.wait(lambda: self.pending(owner), timeout_s, tell)

    def _work(self) -> None:
        try:
            while jobs := self._next():
                for job in self._helped(jobs):
                    self._make(job)
        finally:
            with self._changed:
                if self._thread is threading.current_thread():  # a bug ends it: nobody shall wait for it
                    self._jobs, self._now, self._thread = [], None, None
                    self._changed.notify_all()

    def _next(self) -> list[Job]:
        """All jobs there are; none ends the thread."""
        with self._changed:
            if not self._jobs:
                self._thread = None
            self._stop.clear()
            return list(self._jobs)

    def _helped(self, jobs: list[Job]) -> Iterator[Job]:
        """The jobs, each when the helper is through with it; those that it failed at are done with."""
        while self._helper is not None and jobs:
            if not self._wait_until_idle(jobs[0]):  # cancelled: others' jobs are the next round's
                return
            jobs = [job for job in jobs if job in self._jobs]
            answered = 0
            try:
                with contextlib.closing(self._helper([job.part for job in jobs], self._stop)) as answers:
                    for job, error in zip(jobs, answers, strict=False):
                        answered += 1
                        if error is None:
                            yield job
                        elif job in self._jobs:
                            self._end(job, CompileError(error))
                        if not any(other in self._jobs for other in jobs[answered:]):  # cancelled
                            return
            except (CompileError, OSError, ValueError, pickle.PickleError) as error:
                _log.info("no help with compiling: %s; it is done in this process", error)
                break
            if not answered:
                break
            jobs = jobs[answered:]
        yield from jobs

    def _wait_until_idle(self, job: Job) -> bool:
        """Waits until nobody is disturbed, or somebody waits; False if the job was cancelled meanwhile."""
        with self._changed:
            while job in self._jobs and not (
                self._waiters or (self.activity.is_idle() and not job.is_busy())
            ):
                self._changed.wait(_LOOK_EVERY_S)
            return job in self._jobs

    def _make(self, job: Job) -> None:
        with self._changed:
            if not self._wait_until_idle(job):
                return
            self._now = job
        job.begin()
        try:
            result: Graph | CompileError = self.compiler.prepare(*job.part)
        except CompileError as error:
            result = error
        self._end(job, result)

    def _end(self, job: Job, result: Graph | CompileError) -> None:
        try:
            job.done(result)
        finally:
            with self._changed:
                self._now = None
                self._jobs = [each for each in self._jobs if each is not job]
                self._changed.notify_all()


@functools.cache
def workshop_of_this_process() -> Workshop:
    """The one that engines share: pipelines and checkpoints of a family have the same structures."""
    workshop = Workshop(Compiler(), activity_of_this_process())
    atexit.register(workshop.close)
    return workshop
