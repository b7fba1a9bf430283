"""Outcomes and stages of the demo that no model had to run for."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from lib_accel.bench.stats import Paired
from lib_accel.bench.timing import ACCELERATED, STOCK, Run
from lib_accel.demo.cases import Case, Outcome
from lib_accel.demo.growth import COUNTS, Point

MS = {STOCK: 30.0, ACCELERATED: 20.0}
LEVELS = {STOCK: 100, ACCELERATED: 101}


def picture(level: int, *, width: int = 64, height: int = 64) -> np.ndarray[Any, Any]:
    """A picture of one grey."""
    return np.full((height, width, 3), level, np.uint8)


def outcome(
    name: str = "no LoRA",
    *,
    loras: int = 0,
    ours: int = LEVELS[ACCELERATED],
    width: int = 64,
    is_controlled: bool = False,
    prompts: int = 1,
) -> Outcome:
    """What both sides did: stock made pictures of grey 100 in 30 ms a step, ours some of `ours` in 20 ms."""
    return Outcome(
        case=Case(name, loras, is_controlled),
        figures=Paired(MS[STOCK], MS[ACCELERATED], 1.5, 1.4),
        first_ms={STOCK: 40.0, ACCELERATED: 50.0},
        switch_ms={STOCK: 300.0, ACCELERATED: 12.4},
        blocks={"by_speed": {"direct": 45, "compiled": 0, "host": 1}, "reasons": {"because": 1}},
        pictures={
            STOCK: [picture(LEVELS[STOCK], width=width)] * prompts,
            ACCELERATED: [picture(ours, width=width)] * prompts,
        },
    )


def points(*, stock: tuple[float, float], ours: tuple[float, float]) -> list[Point]:
    """Both sides' times, each (without LoRAs, added by each) in milliseconds."""
    return [Point(n, Paired(stock[0] + n * stock[1], ours[0] + n * ours[1], 1.0, 1.0)) for n in COUNTS]


class FakeStage:
    """Stands for a stage: notes what it was told, and gives the times and pictures above."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.switch_ms = {STOCK: 300.0, ACCELERATED: 12.4}
        self.blocks = {"by_speed": {"direct": 45, "compiled": 0, "host": 1}, "reasons": {"because": 1}}

    def wear(self, count: int) -> None:
        self.told.append(count)

    def run(self, side: str, steps: int, **asked: Any) -> tuple[Run, Any]:
        self.told.append((side, steps, asked))
        shown = Image.fromarray(picture(LEVELS[side]))
        return Run(first_ms=50.0, step_ms=MS[side]), [shown]
