"""How the time of a step grows with the number of LoRAs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lib_accel.bench.stats import Paired
from lib_accel.bench.timing import ACCELERATED, STOCK, Run, in_turn
from lib_accel.demo.cases import figures_of
from lib_accel.demo.stage import Stage

COUNTS = (0, 1, 2, 4, 8, 16)
PAIRS = 2
STEPS = 6


@dataclass(frozen=True)
class Point:
    """Both sides' time of a step with so many LoRAs."""

    loras: int
    figures: Paired

    def as_dict(self) -> dict[str, Any]:
        """The point as plain values."""
        return {"loras": self.loras, **asdict(self.figures)}


def point(stage: Stage, loras: int) -> Point:
    """Times a few steps on both sides, in turn."""
    stage.wear(loras)

    def run(side: str) -> Run:
        return stage.run(side, STEPS, output_type="latent")[0]

    sides = {side: functools.partial(run, side) for side in (STOCK, ACCELERATED)}
    runs = in_turn(sides, PAIRS, warm=lambda side: stage.run(side, 2, output_type="latent"))
    return Point(loras, figures_of(runs))


def slope_ms(points: Sequence[Point], side: str) -> float:
    """What one more LoRA adds to a step on that side: milliseconds, over the whole range."""
    first, last = points[0], points[-1]
    times = [
        each.figures.stock_ms if side == STOCK else each.figures.accelerated_ms for each in (first, last)
    ]
    return (times[1] - times[0]) / (last.loras - first.loras)
