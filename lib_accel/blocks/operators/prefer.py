"""A choice without any measurement: whatever bears a name, where it can be had."""

from __future__ import annotations

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator


class Prefer:
    """operator.Tuned that takes the first implementation whose name begins so, else plain torch."""

    def __init__(self, name: str) -> None:
        self._name = name

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        """The first of that name; looked for at each call."""
        return next((each for each in operator.others(*args) if each.name.startswith(self._name)), None)

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        """Raises the error: who prefers something wants to know."""
        raise error

    def __repr__(self) -> str:
        return f"Prefer({self._name!r})"
