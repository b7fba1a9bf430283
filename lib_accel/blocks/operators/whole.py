"""Operators that a compiler leaves whole: one call each in what it makes, which finds its way when that runs.

What is compiled outlives the choices of a day. So a trace knows the names of the operators only, and what
computes them is asked of the thread that runs it; see custom.py for what is called.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator, Tuned

NAMESPACE = "sd_webui_accel"  # in torch.ops


class _Thread(threading.local):
    tuned: Tuned | None = None


_THREAD = _Thread()


class Whole(NamedTuple):
    """operator.Tuned of a trace: the operators of these names are left whole, all others are plain torch.

    Where it is not traced, what holds on the thread computes all of them.
    """

    names: tuple[str, ...]  # sorted

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        """What holds on this thread."""
        tuned = _THREAD.tuned
        return None if tuned is None else tuned.implementation(operator, args)

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        """Tells what holds on this thread."""
        if _THREAD.tuned is not None:
            _THREAD.tuned.note_failure(operator, implementation, error)


@contextlib.contextmanager
def computed_by(tuned: Tuned | None) -> Iterator[None]:
    """Operators that were left whole are computed by this on this thread, for the `with` block."""
    before, _THREAD.tuned = _THREAD.tuned, tuned
    try:
        yield
    finally:
        _THREAD.tuned = before


def holding() -> Tuned | None:
    """What computes operators that were left whole on this thread now."""
    return _THREAD.tuned


def left_whole(operator: Operator, args: Arguments) -> Any:
    """Its result by the custom operation of its name, as a compiler traces it."""
    return getattr(getattr(torch.ops, NAMESPACE), identifier(operator.name))(*flattened(args))


def identifier(name: str) -> str:
    """An operator's name as torch takes it."""
    return name.replace(",", "").replace(" ", "_")


def flattened(values: tuple[Any, ...]) -> list[Any]:
    """The values, and those inside of tuples, one after the other."""
    flat: list[Any] = []
    for value in values:
        if isinstance(value, tuple):
            flat += flattened(value)
        else:
            flat.append(value)
    return flat
