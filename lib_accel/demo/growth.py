"""How the time of a step grows with the number of LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lib_accel.bench.stats import Paired, paired
from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.stage import Stage

COUNTS = (0, 1, 2, 4, 8, 16)
STEPS = 6


@dataclass(frozen=True)
class Point:
    """Both sides' time of a step with so many LoRAs."""

    loras: int
    figures: Paired

    def as_dict(self) -> dict[str, Any]:
        """The point as plain values."""
        return {"loras": self.loras, **asdict(self.figures)}


def grow(stage: Stage, counts: Sequence[int], prompt: str, begin: Callable[[str], None]) -> list[Point]:
    """Times a few steps of both sides with each number of LoRAs.

    begin: is told each part as it begins; there are two for each number.
    """
    times: dict[tuple[int, str], list[float]] = {}
    for side in (ACCELERATED, STOCK):
        stage.run(side, 2, prompt=prompt, output_type="latent")  # to warm up
    for count, sides in rounds(counts):
        begin(f"a step with {count} LoRA{'' if count == 1 else 's'}")
        stage.wear(count)
        for side in sides:
            run, _ = stage.run(side, STEPS, prompt=prompt, output_type="latent")
            times.setdefault((count, side), []).append(run.step_ms)
    return [Point(count, paired(times[count, STOCK], times[count, ACCELERATED])) for count in counts]


def rounds(counts: Sequence[int]) -> Iterator[tuple[int, tuple[str, str]]]:
    """Up and down again, each time with the other side first: a machine that slows down bends no line."""
    for count in counts:
        yield count, (STOCK, ACCELERATED)
    for count in reversed(counts):
        yield count, (ACCELERATED, STOCK)


def slope_ms(points: Sequence[Point], side: str) -> float:
    """What one more LoRA adds to a step on that side: milliseconds, over the whole range."""
    first, last = points[0], points[-1]
    times = [
        each.figures.stock_ms if side == STOCK else each.figures.accelerated_ms for each in (first, last)
    ]
    return (times[1] - times[0]) / (last.loras - first.loras)
