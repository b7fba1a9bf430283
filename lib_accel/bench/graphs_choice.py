"""The choice of a subject under test: it compiles in this process, and remembers nothing."""

from __future__ import annotations

from collections.abc import Callable

from lib_accel.choice import Choice
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.compiler import Backend, Compiler
from lib_accel.graphs.structure import Condition
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import Workshop

Backends = Callable[[Condition], Backend]


def own_choice(backends: Backends) -> Choice:
    """One that shares no graph with others, so that what it compiles can be counted and timed."""
    return Choice(Verdicts(None), Workshop(Compiler(backends), Activity(), helper=None))
