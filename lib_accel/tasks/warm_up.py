"""Warm-up: what the first pictures of a size would pay for is paid before somebody waits for one."""

from __future__ import annotations

from dataclasses import dataclass

from lib_accel.choice import TO_BE_PROVED
from lib_accel.engine import Engine
from lib_accel.painter import Painted, Painter, Wanted
from lib_accel.report import Report, counted
from lib_accel.tasks.session import drawing
from lib_accel.tasks.task import Outcome, Task
from lib_accel.tuning.contest import TORCH

NAME = "warm-up"

_MOST_ROUNDS = 3  # of measuring: where weights are laid otherwise, the next picture has other calls
_MOST_PROOFS = 8  # pictures in which proofs may go on; what is not proved by then is in later pictures
_DRAWN, _READY = 0.15, 0.8  # share of all that is done after the first picture, and when all is made

# What the progress says, by whether operators are measured, and whether graphs are compiled.
_WORK = {
    (False, False): ("preparing", ""),
    (False, True): ("compiling", " graphs"),
    (True, False): ("measuring", " operators"),
    (True, True): ("measuring and compiling", " operators and graphs"),
}


@dataclass(frozen=True)
class Warm:
    """What a warm-up did."""

    pictures: int
    graphs: int  # that were compiled in it
    operators: int  # that were measured in it
    others: int  # operators that take another implementation than plain torch now
    captures: int  # of CUDA graphs
    seconds: float  # of the first picture
    step_ms: float | None  # of the last picture


def warm_up(engine: Engine, painter: Painter, wanted: Wanted, task: Task) -> Outcome[Warm]:
    """Draws a picture of this size, measures and compiles what it asked for, and proves that on further ones.

    Raises TaskError if nothing would run fast, and TaskCancelled.
    """
    with drawing(engine, painter, task, 1):
        session = _Session(engine, painter, wanted, task)
        before, captured_before = engine.report().graphs.graphs, _captured(engine)
        task.tell("drawing a first picture", 0.0)
        first = session.draw()
        while session.prepare() and session.pictures <= _MOST_ROUNDS:
            task.tell("drawing with what was measured", _READY)
            session.draw()
        made = engine.report().graphs.graphs - before
        session.prove()
        # What is called once a picture, as a VAE is, is captured in the second one.
        if made or _captured(engine) > captured_before:
            task.tell("drawing a last picture", 0.97)
            session.draw()
    report = engine.report()
    done = Warm(
        session.pictures,
        made,
        session.operators,
        sum(case.next_chosen != TORCH for case in report.tuning.cases),
        report.launches.captures - captured_before,
        first.seconds,
        session.step_ms,
    )
    return Outcome(done, _in_words(done))


class _Session:
    """The pictures of one warm-up, and what is made between them."""

    def __init__(self, engine: Engine, painter: Painter, wanted: Wanted, task: Task) -> None:
        self._engine, self._painter, self._wanted, self._task = engine, painter, wanted, task
        self.pictures = 0
        self.operators = 0  # that were measured
        self.step_ms: float | None = None  # of the latest picture

    def draw(self) -> Painted:
        """One more picture, with all that is found out by now."""
        self._engine.begin_generation()
        painted = self._painter.draw(self._wanted)
        self.pictures += 1
        self.step_ms = painted.step_ms
        return painted

    def prepare(self) -> bool:
        """Measures and compiles what was asked for; whether that were operators too."""
        before = self._engine.report()
        contests, graphs = before.tuning.pending, before.graphs.pending
        work, unit = _WORK[contests > 0, graphs > 0]
        most = contests + graphs

        def tell(left: int) -> None:
            nonlocal most
            most = max(most, left)
            share = (most - left) / most if most else 1.0
            stage = f"{work}: {left} of {most}{unit} left" if left else "measured and compiled"
            self._task.tell(stage, _DRAWN + (_READY - _DRAWN) * share)

        self._engine.warm_up(tell=tell)
        self.operators += _measured(self._engine.report()) - _measured(before)
        return contests > 0

    def prove(self) -> None:
        """Draws as long as that proves graphs."""
        left = _unproved(self._engine)
        for proof in range(_MOST_PROOFS):
            if not left:
                return
            self._task.tell(f"proving {left} graphs", _READY + (1 - _READY) * proof / _MOST_PROOFS)
            self.draw()
            left, before = _unproved(self._engine), left
            if left >= before:  # what is left is met in other pictures only
                return


def _measured(report: Report) -> int:
    return sum(bool(case.ms) for case in report.tuning.cases)


def _unproved(engine: Engine) -> int:
    return sum(case.reason == TO_BE_PROVED for case in engine.report().graphs.cases)


def _captured(engine: Engine) -> int:
    return engine.report().launches.captures


def _in_words(done: Warm) -> str:
    parts = ["a picture drawn" if done.pictures == 1 else f"{done.pictures} pictures drawn"]
    parts.append(f"{done.graphs} graphs compiled" if done.graphs else "nothing to compile")
    if done.operators:
        parts.append(f"{counted(done.operators, 'operator')} measured")
    if done.others:
        parts.append(f"{counted(done.others, 'operator')} by another implementation than torch")
    if done.captures:
        parts.append(f"{counted(done.captures, 'CUDA graph')} captured")
    if done.step_ms is not None:
        parts.append(f"{1000 / done.step_ms:.2f} it/s")
    return f"ready: {', '.join(parts)}"
