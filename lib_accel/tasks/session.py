"""The program to oneself, for pictures that are nobody's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lib_accel.engine import Engine
from lib_accel.errors import TaskError
from lib_accel.painter import Painter
from lib_accel.report import Report
from lib_accel.tasks.task import Task


@contextlib.contextmanager
def drawing(engine: Engine, painter: Painter, task: Task, pictures: int) -> Iterator[None]:
    """A session of the painter; counters begin anew after it. Raises TaskError if we would stand aside.

    That is asked only in the session: before it, somebody else's picture may have us off.
    """
    with painter.session(task.name, pictures, task.check):
        _refuse_if_slow(engine.report())
        try:
            yield
        finally:
            engine.begin_generation()


def _refuse_if_slow(report: Report) -> None:
    if not report.enabled:
        raise TaskError("acceleration is off: turn it on in Settings, Accel; or it is off until the restart")
    if report.stand_aside:
        raise TaskError(f"nothing would run fast: {'; '.join(report.stand_aside)}")


def refuse_if_nothing_ran(engine: Engine) -> None:
    """Raises TaskError if no block of the latest picture ran our code."""
    done = engine.generation
    if not done.fast:
        reason = done.reasons.most_common(1)[0][0] if done.reasons else "no block of it is one that we know"
        raise TaskError(f"nothing ran fast in the picture: {reason}")
