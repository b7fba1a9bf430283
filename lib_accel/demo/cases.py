"""What the demo shows of a model: pictures with so many LoRAs, with and without a ControlNet."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lib_accel.bench.comparison import picture_difference
from lib_accel.bench.stats import Paired, paired
from lib_accel.bench.timing import ACCELERATED, STOCK, Run, in_turn
from lib_accel.demo.stage import Stage

PAIRS = 2
Picture = np.ndarray[Any, Any]  # (height, width, 3), uint8


@dataclass(frozen=True)
class Case:
    """The first so many of the LoRAs, and the ControlNet or not."""

    name: str
    loras: int
    is_controlled: bool


@dataclass(frozen=True)
class Outcome:
    """What both sides did in a case."""

    case: Case
    figures: Paired
    first_ms: Mapping[str, float]  # by side: up to the end of a picture's first step
    switch_ms: Mapping[str, float]  # by side: from no LoRA to those of the case
    blocks: Mapping[str, Any]
    pictures: Mapping[str, Sequence[Picture]]  # by side, one for each prompt

    @property
    def difference(self) -> tuple[int, float]:
        """Largest and mean difference of all pictures' channels, in steps of 255."""
        return picture_difference(np.stack(self.pictures[ACCELERATED]), np.stack(self.pictures[STOCK]))

    def as_dict(self) -> dict[str, Any]:
        """All but the pictures, as plain values."""
        largest, mean = self.difference
        return {
            "name": self.case.name,
            **asdict(self.figures),
            "first_ms": dict(self.first_ms),
            "switch_ms": dict(self.switch_ms),
            "blocks": dict(self.blocks),
            "difference": {"picture_max": largest, "picture_mean": mean},
        }


def cases_of(loras: int, *, is_controlled: bool) -> list[Case]:
    """The cases for a model with so many LoRAs, and a ControlNet or not."""
    counts = sorted({0, min(1, loras), min(2, loras), loras})
    plain = [Case(_name(count), count, False) for count in counts]
    if not is_controlled:
        return plain
    with_loras = [Case(f"ControlNet, {_name(loras)}", loras, True)] if loras else []
    return [*plain, Case("ControlNet", 0, True), *with_loras]


def _name(loras: int) -> str:
    return "no LoRA" if not loras else "1 LoRA" if loras == 1 else f"{loras} LoRAs"


def outcome_of(stage: Stage, case: Case, steps: int, prompts: Sequence[str]) -> Outcome:
    """Makes the case's picture of the first prompt on both sides, in turn, PAIRS times each; then of the
    others, untimed."""
    stage.wear(case.loras)
    pictures: dict[tuple[str, str], Picture] = {}  # by side and prompt

    def run(side: str, prompt: str) -> Run:
        timed, images = stage.run(side, steps, prompt=prompt)
        pictures[side, prompt] = np.asarray(images[0].convert("RGB"))
        return timed

    sides = {side: functools.partial(run, side, prompts[0]) for side in (STOCK, ACCELERATED)}
    runs = in_turn(sides, PAIRS, warm=lambda side: stage.run(side, 2, prompt=prompts[0]))
    switch_ms = dict(stage.switch_ms)
    for side in sides:
        for prompt in prompts[1:]:
            run(side, prompt)
    return Outcome(
        case=case,
        figures=figures_of(runs),
        first_ms={side: runs[side][-1].first_ms for side in runs},
        switch_ms=switch_ms,
        blocks=stage.blocks,
        pictures={side: [pictures[side, prompt] for prompt in prompts] for side in sides},
    )


def figures_of(runs: Mapping[str, Sequence[Run]]) -> Paired:
    """Figures of the steps of runs that were made in turn."""
    return paired(*([run.step_ms for run in runs[side]] for side in (STOCK, ACCELERATED)))
