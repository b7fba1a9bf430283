"""Where graphs are made: on a thread while no model is called, the long part of it in another process."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch

from lib_accel.errors import CompileError
from lib_accel.graphs.compiler import Compiler, Graph
from lib_accel.graphs.worker import Part, compile_elsewhere

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05

# Makes the graphs of parts elsewhere, so that to make them here takes little; see compile_elsewhere.
Helper = Callable[[Sequence[Part], int], Generator[str | None, None, None]]


class Job(NamedTuple):
    """A graph that is wanted, and who is told of it."""

    part: Part
    begin: Callable[[], None]
    done: Callable[[Graph | CompileError], None]


class Workshop:
    """Makes graphs one after the other, on a daemon thread that lives while there is something to do."""

    def __init__(
        self, compiler: Compiler, is_idle: Callable[[], bool], helper: Helper | None = compile_elsewhere
    ) -> None:
        """`is_idle`: whether no model is being called; `helper`: None makes everything in this process."""
        self._compiler, self._is_idle, self._helper = compiler, is_idle, helper
        self._jobs: list[Job] = []
        self._now: Job | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._waiting = 0  # callers of `finish`

    @property
    def pending(self) -> int:
        """How many graphs are still to be made."""
        with self._changed:
            return len(self._jobs)

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

    def cancel(self) -> None:
        """Forgets what was not begun."""
        with self._changed:
            self._jobs = self._jobs[:1] if self._now is not None else []
            self._changed.notify_all()

    def finish(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Has everything made now, idle or not; whether that was done in time. `tell` hears what is left."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: self._tell(tell) == 0, timeout_s)
            finally:
                self._waiting -= 1

    def _tell(self, tell: Callable[[int], None] | None) -> int:
        left = len(self._jobs)
        if tell is not None:
            tell(left)
        return left

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
            return list(self._jobs)

    def _helped(self, jobs: list[Job]) -> Iterator[Job]:
        """The jobs, each when the helper is through with it; those that it failed at are done with."""
        helper = self._helper
        while helper is not None and jobs:
            answered = 0
            try:
                with contextlib.closing(
                    helper([job.part for job in jobs], torch.get_num_threads())
                ) as answers:
                    for job, error in zip(jobs, answers, strict=False):
                        answered += 1
                        if error is None:
                            yield job
                        elif job in self._jobs:
                            self._end(job, CompileError(error))
                        if not any(other in self._jobs for other in jobs[answered:]):  # cancelled
                            return
            except CompileError as error:
                _log.info("%s; compiling in this process", error)
                break
            if not answered:
                break
            jobs = jobs[answered:]
        yield from jobs

    def _make(self, job: Job) -> None:
        with self._changed:
            while job in self._jobs and not (self._waiting or self._is_idle()):
                self._changed.wait(_LOOK_EVERY_S)
            if job not in self._jobs:  # cancelled
                return
            self._now = job
        job.begin()
        try:
            result: Graph | CompileError = self._compiler.prepare(*job.part)
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
