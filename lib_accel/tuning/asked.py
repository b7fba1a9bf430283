"""What a user asks for comes before what was measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator, Tuned
from lib_accel.errors import reason_of
from lib_accel.tuning.signature import signature

_log = logging.getLogger(__name__)

_MOST_SIGNATURES = 20_000  # that are remembered


class Asked:
    """operator.Tuned that takes one implementation of an operator where it can, else what was measured."""

    def __init__(
        self,
        measured: Tuned,
        operator: Operator,
        implementation: Implementation,
        why_not: Callable[..., Sequence[str]],
    ) -> None:
        """`why_not`: of the operator's arguments; depends on their sizes, dtypes and device only."""
        self.measured = measured
        self._operator, self._implementation, self._why_not = operator, implementation, why_not
        self._reasons: dict[Hashable, tuple[str, ...]] = {}
        self._fault: str | None = None

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        """The one to take for these arguments, or None for plain torch."""
        if operator is self._operator and self._fault is None and not self._reasons_of(args):
            return self._implementation
        return self.measured.implementation(operator, args)

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        """What was asked for is not taken any more, if that is what failed."""
        if implementation is not self._implementation:
            self.measured.note_failure(operator, implementation, error)
        elif self._fault is None:
            self._fault = f"{implementation.name} failed: {reason_of(error)}"
            _log.error("%s by %s failed", operator.name, implementation.name, exc_info=error)

    def refused(self) -> list[str]:
        """Why calls so far were computed otherwise than the user asked, each reason once."""
        found = [reason for reasons in list(self._reasons.values()) for reason in reasons]
        return list(dict.fromkeys(found if self._fault is None else [self._fault]))

    def _reasons_of(self, args: Arguments) -> tuple[str, ...]:
        key = signature(self._operator.name, args)
        reasons = self._reasons.get(key)
        if reasons is None:
            if len(self._reasons) >= _MOST_SIGNATURES:
                self._reasons.clear()
            reasons = self._reasons[key] = tuple(self._why_not(*args))
        return reasons

    def __repr__(self) -> str:
        return f"Asked({self._implementation.name}, {self._fault}, {self.measured!r})"
