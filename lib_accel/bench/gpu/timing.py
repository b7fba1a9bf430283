"""Times two sides in turn, A B B A: by events of the GPU where there is one, by the clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from lib_accel.bench.stats import interval
from lib_accel.bench.timing import ACCELERATED, STOCK, turns

Call = Callable[[], Any]


@dataclass(frozen=True)
class Pace:
    """How much is timed."""

    pairs: int = 15
    run_ms: float = 150.0  # about so long is a timed run, of several calls
    most_calls: int = 20  # of a run


QUICK = Pace(pairs=3)
DRY = Pace(pairs=1, run_ms=0.0, most_calls=1)


@dataclass(frozen=True)
class Turn:
    """A side as it is timed: what puts it in place, and calls until it runs as it will."""

    place: Callable[[], AbstractContextManager[Call]]
    settle: int = 1

    @classmethod
    def of(cls, call: Call) -> Turn:
        """A side that needs nothing put in place."""
        return cls(lambda: nullcontext(call))


def run_ms(call: Call, device: torch.device, calls: int) -> float:
    """Milliseconds of a call, of so many that follow each other; nobody waits for the device in between.

    So it is in a picture: a step is prepared while the GPU still works on the one before.
    """
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return 1000 * (time.perf_counter() - began) / calls
    event: Any = torch.cuda.Event
    first, last = (event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(calls):
        call()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / calls


def paired_ms(stock: Turn, ours: Turn, device: torch.device, pace: Pace) -> dict[str, list[float]]:
    """Milliseconds of a call of both sides in the order A B B A, by timing's names of sides."""
    sides = {STOCK: stock, ACCELERATED: ours}
    calls = {name: _calls(side, device, pace) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name in turns(pace.pairs):
        times[name].append(_timed(sides[name], device, calls[name]))
    return times


def alone_ms(side: Turn, device: torch.device, pace: Pace) -> list[float]:
    """Milliseconds of a call of one side, as often as pairs are timed."""
    calls = _calls(side, device, pace)
    return [_timed(side, device, calls) for _ in range(pace.pairs)]


def ratio_figures(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Medians, and stock's time divided by ours with its 95 % interval: above 1, ours is faster."""
    ratios = [a / b for a, b in zip(times[STOCK], times[ACCELERATED], strict=True)]
    low, high = interval(ratios)
    return {
        "ms": median(times[ACCELERATED]),
        "stock_ms": median(times[STOCK]),
        "ratio": median(ratios),
        "ratio_low95": low,
        "ratio_high95": high,
    }


def _calls(side: Turn, device: torch.device, pace: Pace) -> int:
    with side.place() as call:
        for _ in range(side.settle):
            call()
        one = run_ms(call, device, 1)
    return max(1, min(pace.most_calls, round(pace.run_ms / one)))


def _timed(side: Turn, device: torch.device, calls: int) -> float:
    with side.place() as call:
        for _ in range(side.settle):
            call()
        return run_ms(call, device, calls)
