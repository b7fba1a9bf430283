"""Benchmark: the time of a step on the user's machine with and without us, against the number of LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lib_accel.bench.stats import interval, paired
from lib_accel.bench.timing import ACCELERATED, STOCK, turns
from lib_accel.device import device_name
from lib_accel.engine import Engine
from lib_accel.errors import TaskError
from lib_accel.painter import TIMED_STEPS, Painter, Wanted
from lib_accel.report import counted
from lib_accel.tasks.session import drawing, refuse_if_nothing_ran
from lib_accel.tasks.task import Outcome, Task

NAME = "benchmark"
LORAS = (0, 1, 4)
PAIRS = 6  # of pictures, stock and ours in turn: the median of six lies between their ends 97 times of 100


@dataclass(frozen=True)
class Row:
    """One number of LoRAs; times are those of a sampling step."""

    loras: int
    stock_ms: float
    ours_ms: float
    ratio: float  # median of the pairs' ratios: above 1 means that ours is faster
    low: float  # ends of the 95 % interval of the ratio
    high: float


@dataclass(frozen=True)
class Benchmark:
    """The figures, and what they were taken with."""

    width: int
    height: int
    steps: int
    pairs: int
    device: str
    rows: Sequence[Row]

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, as the API sends them."""
        return asdict(self)


def benchmark(
    engine: Engine,
    painter: Painter,
    wanted: Wanted,
    task: Task,
    *,
    loras: Sequence[int] = LORAS,
    pairs: int = PAIRS,
) -> Outcome[Benchmark]:
    """Draws pictures with and without us in turn (A B B A), after one of each to warm up.

    All numbers of LoRAs take turns too, so that no row has the machine at a better time than the others.
    Raises TaskError if pictures have too few steps or nothing would run fast, and TaskCancelled.
    """
    if wanted.steps < TIMED_STEPS[0]:
        raise TaskError(f"steps: got {wanted.steps}, expected {TIMED_STEPS[0]} or more")
    order = turns(1 + pairs)  # the first pair is to warm up: it merges weights and fills caches
    run = _Run(engine, painter, wanted, task, len(loras) * len(order) + 1)
    times: dict[tuple[int, str], list[float]] = {(count, side): [] for count in loras for side in order[:2]}
    with drawing(engine, painter, task, run.pictures), painter.random_loras(max(loras)) as tags:
        for first in range(0, len(order), 2):
            for count in loras:
                for side in order[first : first + 2]:
                    times[count, side].append(run.step_ms(count, " ".join(tags[:count]), side))
        painter.draw(replace(wanted, steps=1))  # gives the weights back
    rows = [_row(count, *(times[count, side][1:] for side in (STOCK, ACCELERATED))) for count in loras]
    device = device_name(painter.device())
    figures = Benchmark(wanted.width, wanted.height, wanted.steps, pairs, device, rows)
    return Outcome(figures, _in_words(rows))


@dataclass
class _Run:
    """Draws, and tells the task how many of all pictures that were."""

    engine: Engine
    painter: Painter
    wanted: Wanted
    task: Task
    pictures: int
    drawn: int = 0

    def step_ms(self, loras: int, prompt: str, side: str) -> float:
        self.task.tell(
            f"{counted(loras, 'LoRA')}, {'with' if side == ACCELERATED else 'without'} acceleration",
            self.drawn / self.pictures,
        )
        self.engine.begin_generation()
        painted = self.painter.draw(self.wanted, prompt, is_accelerated=side == ACCELERATED)
        if side == ACCELERATED:
            refuse_if_nothing_ran(self.engine)
        self.drawn += 1
        if painted.step_ms is None:
            raise TaskError("the sampler's steps could not be timed; choose another sampler")
        return painted.step_ms


def _row(loras: int, stock: Sequence[float], ours: Sequence[float]) -> Row:
    figures = paired(stock, ours)
    low, high = interval([one / other for one, other in zip(stock, ours, strict=True)])
    return Row(loras, figures.stock_ms, figures.accelerated_ms, figures.ratio, low, high)


def _in_words(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row.ratio:.2f}x with {counted(row.loras, 'LoRA')}" for row in rows)
