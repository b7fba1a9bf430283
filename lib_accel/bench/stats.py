"""What paired times say: medians, their ratio, and how far that ratio can be trusted. Needs no torch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

DRAWS = 4000
SEED = 20240101

# A case counts as slower than stock where even the lower end of its interval is below this.
FLOOR = 0.95


@dataclass(frozen=True)
class Paired:
    """Milliseconds of both sides, and stock's divided by ours: above 1 means that ours is faster."""

    stock_ms: float
    accelerated_ms: float
    ratio: float
    ratio_low95: float  # lower end of the 95 % interval of the ratio


def interval(ratios: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the median of `ratios`; the same numbers give the same interval."""
    source = random.Random(SEED)
    medians = sorted(median(source.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    low = round((1 - level) / 2 * (DRAWS - 1))
    return medians[low], medians[DRAWS - 1 - low]


def paired(stock_ms: Sequence[float], accelerated_ms: Sequence[float]) -> Paired:
    """Figures of times that were taken in pairs; the ratio is the median of the pairs' ratios.

    Raises ValueError if one side has more times than the other.
    """
    ratios = [stock / ours for stock, ours in zip(stock_ms, accelerated_ms, strict=True)]
    return Paired(median(stock_ms), median(accelerated_ms), median(ratios), interval(ratios)[0])


def never_slower(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether no case is slower than stock, and the names of those that are.

    cases: each with "name" and "ratio_low95", as the benchmark's file has them.
    """
    slower = [case["name"] for case in cases if case["ratio_low95"] < FLOOR]
    return {"holds": not slower, "floor": FLOOR, "slower": slower}
