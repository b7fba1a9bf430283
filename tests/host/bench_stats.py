"""Figures of a benchmark: milliseconds per step, and the ratio of pairs with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from lib_accel.bench.stats import interval


@dataclass(frozen=True)
class Run:
    """One request: its first step, which may carry a change of weights, the others, and the whole."""

    first_ms: float
    step_ms: float
    request_s: float

    @classmethod
    def of_notes(cls, notes: dict[str, list[float]], request_s: float) -> Run:
        """From the notes of the step-timer; a step lasts from one answer of the model to the next."""
        asked, answered = notes["asked"], notes["answered"]
        if len(answered) < 2 or len(asked) != len(answered):
            raise ValueError(
                f"{len(asked)} calls and {len(answered)} answers noted, expected as many, 2 or more"
            )
        steps = [later - earlier for earlier, later in pairwise(answered)]
        return cls(1000 * (answered[0] - asked[0]), 1000 * median(steps), request_s)


def summary(stock: Sequence[Run], ours: Sequence[Run]) -> dict[str, Any]:
    """Figures of paired runs; a ratio above 1 means that ours is faster."""
    ratios = [before.step_ms / after.step_ms for before, after in zip(stock, ours, strict=True)]
    low, high = interval(ratios)
    figures: dict[str, Any] = {
        "pairs": len(ratios),
        "ratio": median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "ratios": [round(ratio, 4) for ratio in ratios],
    }
    for side, runs in (("stock", stock), ("ours", ours)):
        figures[f"{side}_ms_per_step"] = median(run.step_ms for run in runs)
        figures[f"{side}_first_step_ms"] = median(run.first_ms for run in runs)
        figures[f"{side}_request_s"] = median(run.request_s for run in runs)
    return figures
