"""A tuner whose choices a test sets, and which knows the time of everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.graphs.proof import DIRECT, Verdict
from lib_accel.report import TuningReport


class Taking:
    """operator.Tuned that takes one implementation of one operator."""

    def __init__(self, operator: str = "", run: Callable[..., Any] | None = None) -> None:
        self._operator = operator
        self._implementation = None if run is None else Implementation("fake", run)
        self.failures: list[str] = []

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        return self._implementation if operator.name == self._operator else None

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        self.failures.append(f"{operator.name}: {error}")

    def __repr__(self) -> str:
        return "Taking()"


class FakeTuner:
    """What engines ask of tuning.tuner.Tuner."""

    def __init__(self, taking: Taking | None = None) -> None:
        self.taking = self._applied = taking or Taking()
        self.applied = self.finished = self.cancelled = 0
        self.noted: list[tuple[str, Arguments]] = []  # of operators by name
        self.ms: dict[str, float] | None = None  # of any call of any operator
        self.pending = 0
        self.version = 0

    def tuned(self, device: torch.device, *, is_replayed: bool = True) -> Taking:
        return self.taking

    def apply(self) -> None:
        """Puts what is taken into effect: from now on it is another version."""
        self.applied += 1
        self.version += self.taking is not self._applied
        self._applied = self.taking

    def note(self, operator: Operator, args: Arguments) -> None:
        self.noted.append((operator.name, args))

    def verdict(self, operator: Operator, args: Arguments) -> Verdict | None:
        return None if self.ms is None else Verdict(DIRECT, "measured", ms=self.ms)

    def finish(self, timeout_s: float | None, tell: Callable[[int], None] | None) -> bool:
        self.finished += 1
        return True

    def cancel(self) -> None:
        self.cancelled += 1

    def clear(self) -> int:
        return 3

    def report(self) -> TuningReport:
        return TuningReport(pending=self.pending)
