"""For tests of the suite of graphs: models of one level, and graphs that are run as they were traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lib_accel.bench.graphs_models import Width
from lib_accel.bench.graphs_rivals import Makers

WIDTH = Width((64,), 32, 1)


class CountingBackend:
    """Counts the graphs that it is given."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, condition: object) -> Callable[[Any, Any], Callable[..., Any]]:
        """The back end for a condition."""
        return self._make

    def _make(self, module: Any, inputs: Any) -> Callable[..., Any]:
        self.made += 1
        return module.forward


def traced_only() -> Makers:
    """Makers that compile nothing, for ours and for the others."""
    return Makers(CountingBackend(), "eager")
