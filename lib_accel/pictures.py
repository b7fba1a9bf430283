"""The latest pictures: what was asked, how long it took, and how much of it ran fast."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

_KEPT = 20
_LEAST = 3  # intervals between steps of which the first may be left out
_MOST_PASSES = 16  # where nobody resets the clock


@dataclass(frozen=True)
class Picture:
    """One generation. All but `ended` and what follows `fast` says how much work it was."""

    width: int  # pixels, of the first pass
    height: int
    batch_size: int
    steps: int
    networks: int  # LoRAs and their kin that the weights carried
    control_models: int  # ControlNet units
    fast: int  # blocks that ran our code, over all steps
    total: int
    fuse_s: float  # seconds in which weights were made to carry the networks
    seconds: float
    step_ms: float | None  # median of a sampling step; None where too few were seen
    is_accelerated: bool
    ended: str  # clock time, HH:MM:SS
    model: str = ""  # the checkpoint's name
    how: str = ""  # sampler, and whether there was a second pass
    ratio: float | None = None  # stock's step divided by ours, if this one was compared
    largest_difference: int | None = None  # from stock's picture, of 255

    @property
    def its_per_s(self) -> float | None:
        """Sampling steps in a second."""
        return None if not self.step_ms else 1000 / self.step_ms

    @property
    def workload(self) -> tuple[int | str, ...]:
        """What a step's time depends on."""
        sizes = self.width, self.height, self.batch_size, self.networks, self.control_models
        return *sizes, self.model, self.how

    def as_dict(self) -> dict[str, Any]:
        """The picture as plain values, as the API sends it."""
        return asdict(self) | {"its_per_s": self.its_per_s}


class Pictures:
    """The latest of them, newest first. May be asked from any thread."""

    def __init__(self) -> None:
        self._kept: deque[Picture] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    def add(self, picture: Picture) -> None:
        """Keeps one more."""
        with self._lock:
            self._kept.appendleft(picture)

    def latest(self) -> Sequence[Picture]:
        """All that are kept."""
        with self._lock:
            return list(self._kept)

    def ratio(self) -> float | None:
        """How much faster than stock the latest picture's kind of work was when it was last compared."""
        pictures = self.latest()
        if not pictures or not pictures[0].is_accelerated:
            return None
        alike = (each for each in pictures if each.workload == pictures[0].workload)
        return next((each.ratio for each in alike if each.ratio is not None), None)


class StepClock:
    """Notes when sampling steps begin; a pass that begins anew, as of hires fix, counts by itself."""

    def __init__(self) -> None:
        self._passes: deque[list[tuple[float, int]]] = deque(maxlen=_MOST_PASSES)

    def reset(self) -> None:
        """Forgets what was noted."""
        self._passes.clear()

    def note(self, step: int) -> None:
        """Notes that the model is asked when so many steps have ended, as the host counts them.

        Several calls may have the same number, of which the first counts: some samplers ask twice for a step,
        and the webui counts the first one late.
        """
        if not self._passes or step < self._passes[-1][-1][1]:
            self._passes.append([(time.perf_counter(), step)])
        elif step > self._passes[-1][-1][1]:
            self._passes[-1].append((time.perf_counter(), step))

    def step_ms(self) -> float | None:
        """The median of a step of the first pass that has some; the first step, which may carry a change of
        weights, is left out."""
        for noted in list(self._passes):
            intervals = [
                1000 * (end - begin) / (next_step - step)
                for (begin, step), (end, next_step) in pairwise(noted)
            ]
            if len(intervals) >= _LEAST:
                return median(intervals[1:])
        return None


def compared(picture: Picture, ratio: float | None, largest_difference: int | None) -> Picture:
    """The picture with what a comparison with stock found."""
    return replace(picture, ratio=ratio, largest_difference=largest_difference)
