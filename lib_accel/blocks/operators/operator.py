"""What an operator is, and the one place where another implementation than plain torch is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lib_accel.blocks.operators.whole import Whole, left_whole
from lib_accel.device import OUT_OF_MEMORY, is_capturing, is_compiling

# Tensors, None for one that is missing, or values that can be hashed and that print themselves wholly.
Arguments = tuple[Any, ...]

# A tensor, or a tuple of them. One operator always gives the same.
Result = Any


class Implementation(NamedTuple):
    """One way to compute an operator, called with the operator's arguments, which it leaves as they are."""

    name: str  # the same in every process: choices are kept by it
    run: Callable[..., Result]


class Operator(NamedTuple):
    """A function of tensors and of values that are none, and what computes it; see Arguments and Result."""

    name: str
    plain: Callable[..., Result]  # plain torch, under no autocast
    others: Callable[..., Sequence[Implementation]]  # of the arguments: those that take them on their device
    varies: tuple[tuple[int, ...], ...]  # by argument: dimensions whose size varies from picture to picture


class Tuned(Protocol):
    """What was chosen for the operators of a device. It does not change while a picture is made."""

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        """The one to take for these arguments, or None for plain torch."""

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        """The implementation raised that error, and plain torch follows."""


def by_tile(name: str, function: Callable[..., Result], tiles: Iterable[Any]) -> list[Implementation]:
    """A kernel with each of its tiles, which `function` takes as its last argument, by name."""
    return [Implementation(f"{name}, {tile!r}", partial(function, tile=tile)) for tile in tiles]


def run(operator: Operator, tuned: Tuned | None, *args: Any) -> Tensor:
    """The result of an operator that gives one tensor, as chosen, or by plain torch."""
    result: Tensor = _run(operator, tuned, args)
    return result


def run_several(operator: Operator, tuned: Tuned | None, *args: Any) -> tuple[Tensor, ...]:
    """The same of an operator that gives several."""
    result: tuple[Tensor, ...] = _run(operator, tuned, args)
    return result


def _run(operator: Operator, tuned: Tuned | None, args: Arguments) -> Result:
    if is_compiling() and isinstance(tuned, Whole) and operator.name in tuned.names:
        return left_whole(operator, args)
    if tuned is None or is_compiling() or (chosen := tuned.implementation(operator, args)) is None:
        return operator.plain(*args)
    try:
        return chosen.run(*args)
    except OUT_OF_MEMORY:
        raise  # whoever called the block knows what to do then
    except Exception as error:  # of drivers, of Triton's compiler: an image must come out
        if is_capturing(args[0].device):  # the capture is lost, whoever's fault that is
            raise
        tuned.note_failure(operator, chosen, error)
        return operator.plain(*args)
