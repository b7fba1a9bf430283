"""A task that tells how far it is and can be cancelled, and the place where at most one of them runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from lib_accel.errors import AccelError, TaskCancelled, TaskError

_log = logging.getLogger(__name__)

T = TypeVar("T")
_LEAST_DONE = 0.02  # of a task, before the time left is guessed from it


@dataclass(frozen=True)
class TaskReport:
    """How far the latest task is, or how it ended."""

    name: str
    stage: str
    done: float  # 0 to 1
    elapsed_s: float
    left_s: float | None  # a guess from what is done; None while there is nothing to guess from
    is_running: bool
    outcome: str  # in plain words, once it has ended well
    error: str | None  # why it ended otherwise

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, as the API sends it."""
        return asdict(self)


class Task:
    """What a running task tells, and whether it is to end."""

    def __init__(self, name: str, show: Callable[[str], None] = lambda stage: None) -> None:
        """`show`: hears each stage."""
        self.name = name
        self._show = show
        self._stage, self._done = "waiting for its turn", 0.0
        self._began, self._ended = time.monotonic(), 0.0
        self._is_cancelled = threading.Event()
        self._outcome = ""
        self._error: str | None = None

    def tell(self, stage: str, done: float) -> None:
        """Notes what is done now and the share of all that is done; raises TaskCancelled if it is to end."""
        self.check()
        if stage != self._stage:
            self._show(stage)
        self._stage, self._done = stage, min(max(done, self._done), 1.0)

    def check(self) -> None:
        """Raises TaskCancelled if the task is to end."""
        if reason := self.told_to_end():
            raise TaskCancelled(reason)

    def told_to_end(self) -> str:
        """That it is to end, in words; empty if it is not."""
        return f"the {self.name} was cancelled" if self._is_cancelled.is_set() else ""

    def cancel(self) -> None:
        """Has it end at its next `tell` or `check`."""
        self._is_cancelled.set()

    def end(self, outcome: str = "", error: str | None = None) -> None:
        """Notes how it ended."""
        self._outcome, self._error = outcome, error
        self._ended = time.monotonic()
        if error is None:
            self._done = 1.0

    def report(self) -> TaskReport:
        """How far it is."""
        is_running = not self._ended
        elapsed_s = (self._ended or time.monotonic()) - self._began
        left_s = None
        if is_running and self._done >= _LEAST_DONE:
            left_s = elapsed_s * (1 - self._done) / self._done
        return TaskReport(
            self.name, self._stage, self._done, elapsed_s, left_s, is_running, self._outcome, self._error
        )


class Tasks:
    """Runs at most one task, and remembers the latest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: Task | None = None

    def run(self, task: Task, work: Callable[[Task], Outcome[T]]) -> T:
        """Does the work on this thread and returns what it gives.

        Raises TaskError if another task is running, and what the work raises.
        """
        self._take(task)
        return self._do(task, work)

    def start(self, task: Task, work: Callable[[Task], Outcome[Any]]) -> None:
        """Does the work on a thread of its own; how it ends is in the report. Raises TaskError like `run`."""
        self._take(task)

        def do() -> None:
            try:
                self._do(task, work)
            except AccelError as error:
                _log.info("%s", error)
            except Exception:  # nobody waits for it: the report has the error, the log where it was
                _log.exception("the %s failed", task.name)

        threading.Thread(target=do, name=f"accel-{task.name}", daemon=True).start()

    def cancel(self) -> bool:
        """Has the running task end soon; whether there is one."""
        with self._lock:
            task = self._running()
        if task is not None:
            task.cancel()
        return task is not None

    def report(self) -> TaskReport | None:
        """How far the latest task is, or how it ended."""
        with self._lock:
            return None if self._latest is None else self._latest.report()

    def _take(self, task: Task) -> None:
        with self._lock:
            running = self._running()
            if running is not None:
                raise TaskError(f"a {running.name} is running; wait for it, or cancel it")
            self._latest = task

    def _running(self) -> Task | None:
        return self._latest if self._latest is not None and self._latest.report().is_running else None

    def _do(self, task: Task, work: Callable[[Task], Outcome[T]]) -> T:
        try:
            outcome = work(task)
        except BaseException as error:  # of whatever kind: the task has ended, and the report says how
            task.end(error=task.told_to_end() or str(error) or type(error).__name__)
            raise
        task.end(outcome.text)
        return outcome.value


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a task gives, and that in plain words."""

    value: T
    text: str
