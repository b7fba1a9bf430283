"""Warm-up: what the first pictures of a size would pay for is paid before somebody waits for one."""

from __future__ import annotations

from dataclasses import dataclass

from lib_accel.choice import TO_BE_PROVED
from lib_accel.engine import Engine
from lib_accel.painter import Painted, Painter, Wanted
from lib_accel.report import counted
from lib_accel.tasks.session import drawing
from lib_accel.tasks.task import Outcome, Task

NAME = "warm-up"

_MOST_PROOFS = 8  # pictures in which proofs may go on; what is not proved by then is in later pictures
_DRAWN, _COMPILED = 0.15, 0.8  # share of all that is done after the first picture, and after compiling


@dataclass(frozen=True)
class Warm:
    """What a warm-up did."""

    pictures: int
    graphs: int  # that were compiled in it
    captures: int  # of CUDA graphs
    seconds: float  # of the first picture
    step_ms: float | None  # of the last picture


def warm_up(engine: Engine, painter: Painter, wanted: Wanted, task: Task) -> Outcome[Warm]:
    """Draws a picture of this size, compiles what it asked for, and proves that on further pictures.

    Raises TaskError if nothing would run fast, and TaskCancelled.
    """
    with drawing(engine, painter, task, 1):
        task.tell("drawing a first picture", 0.0)
        before, captured_before = engine.report().graphs.graphs, _captured(engine)
        first = last = _draw(engine, painter, wanted)
        pictures = 1
        _compile(engine, task)
        made = engine.report().graphs.graphs - before
        left = _unproved(engine)
        while left and pictures <= _MOST_PROOFS:
            task.tell(f"proving {left} graphs", _COMPILED + (1 - _COMPILED) * (pictures - 1) / _MOST_PROOFS)
            _draw(engine, painter, wanted)
            pictures += 1
            left, before_it = _unproved(engine), left
            if left >= before_it:  # what is left is met in other pictures only
                break
        # What is called once a picture, as a VAE is, is captured in the second one.
        if made or _captured(engine) > captured_before:
            task.tell("drawing a last picture", 0.97)
            last = _draw(engine, painter, wanted)
            pictures += 1
    captures = _captured(engine) - captured_before
    done = Warm(pictures, made, captures, first.seconds, last.step_ms)
    return Outcome(done, _in_words(done))


def _draw(engine: Engine, painter: Painter, wanted: Wanted) -> Painted:
    engine.begin_generation()
    return painter.draw(wanted)


def _compile(engine: Engine, task: Task) -> None:
    most = engine.report().graphs.pending

    def tell(left: int) -> None:
        nonlocal most
        most = max(most, left)
        share = (most - left) / most if most else 1.0
        stage = f"compiling: {left} of {most} graphs left" if left else "compiled"
        task.tell(stage, _DRAWN + (_COMPILED - _DRAWN) * share)

    engine.warm_up(tell=tell)


def _unproved(engine: Engine) -> int:
    return sum(case.reason == TO_BE_PROVED for case in engine.report().graphs.cases)


def _captured(engine: Engine) -> int:
    return engine.report().launches.captures


def _in_words(done: Warm) -> str:
    pictures = "a picture" if done.pictures == 1 else f"{done.pictures} pictures"
    graphs = f"{done.graphs} graphs compiled" if done.graphs else "nothing to compile"
    if done.captures:
        graphs += f", {counted(done.captures, 'CUDA graph')} captured"
    speed = "" if done.step_ms is None else f", {1000 / done.step_ms:.2f} it/s"
    return f"ready: {pictures} drawn, {graphs}{speed}"
