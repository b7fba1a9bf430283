"""Times the steps of two sides in turn, in one process, both warmed up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

STOCK, ACCELERATED = "stock", "accelerated"


@dataclass(frozen=True)
class Run:
    """One run: all up to the end of its first step, which may carry a change of weights, and the others."""

    first_ms: float
    step_ms: float  # median of the steps after the first


def run_of(ends_s: Sequence[float]) -> Run:
    """The run whose beginning and ends of steps were noted, in seconds of one clock.

    Raises ValueError if fewer than two steps were noted: then there is none beside the first.
    """
    if len(ends_s) < 3:
        raise ValueError(f"{max(len(ends_s) - 1, 0)} steps noted, expected 2 or more")
    first, *others = (1000 * (after - before) for before, after in pairwise(ends_s))
    return Run(first, median(others))


class Clock:
    """Notes when each step of one run ends, from when the clock was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends_s: list[float] = []
        self.tick()

    def tick(self) -> None:
        """Notes the end of a step, once the device has done what it was given."""
        self._ends_s.append(_now_s(self._device))

    def on_step_end(self, _pipe: Any, _step: int, _timestep: Any, _values: Any) -> dict[str, Any]:
        """The form in which a pipeline of diffusers calls back after each step."""
        self.tick()
        return {}

    @property
    def steps(self) -> int:
        """How many steps have ended."""
        return len(self._ends_s) - 1

    def run(self) -> Run:
        """What was noted."""
        return run_of(self._ends_s)


def turns(pairs: int) -> list[str]:
    """The order A B B A A B ...: neither side is always the one that finds the caches warm."""
    order = (STOCK, ACCELERATED)
    return [side for number in range(pairs) for side in (order if number % 2 == 0 else order[::-1])]


def in_turn(
    sides: Mapping[str, Callable[[], Run]], pairs: int, *, warm: Callable[[str], object] | None = None
) -> dict[str, list[Run]]:
    """Runs of both sides in turn, each warmed up before by `warm(side)` or by a run that does not count."""
    for side in (ACCELERATED, STOCK):  # stock last, as it also begins: then it need not be set up twice
        if warm is None:
            sides[side]()
        else:
            warm(side)
    runs: dict[str, list[Run]] = {STOCK: [], ACCELERATED: []}
    for side in turns(pairs):
        runs[side].append(sides[side]())
    return runs


def time_ms(call: Callable[[], Any], device: torch.device) -> float:
    """How long one call takes, in milliseconds."""
    began_s = _now_s(device)
    call()
    return 1000 * (_now_s(device) - began_s)


def _now_s(device: torch.device) -> float:
    """Seconds of a monotonic clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
