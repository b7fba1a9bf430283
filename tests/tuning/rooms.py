"""Operators with rivals of every sort, in a table that a worker can find."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from lib_accel.blocks.operators.operator import Implementation, Operator

SLOW_S = 0.01  # of plain torch: so much that a rival's gain cannot be missed


def _plain(x: Tensor, factor: float) -> Tensor:
    time.sleep(SLOW_S)
    return x * factor


def _quick(x: Tensor, factor: float) -> Tensor:
    return x * factor


def _wrong(x: Tensor, factor: float) -> Tensor:
    return x * factor * 1.01


def _raising(x: Tensor, factor: float) -> Tensor:
    raise ValueError("no kernel")


def _ending(x: Tensor, factor: float) -> Tensor:
    os._exit(7)


def _out_of_memory(x: Tensor, factor: float) -> Tensor:
    raise MemoryError("too large")


RIVALS: Mapping[str, Callable[..., Tensor]] = {
    "quick": _quick,
    "wrong": _wrong,
    "raising": _raising,
    "ending": _ending,
    "out of memory": _out_of_memory,
}


def operator(name: str, *rivals: str) -> Operator:
    """One that multiplies (batch, channels, height, width) by a number, with these rivals."""
    others = [Implementation(each, RIVALS[each]) for each in rivals]
    return Operator(name, _plain, lambda x, factor: others, ((0, 2, 3), ()))


SCALED = operator("scaled", "quick", "wrong", "raising")
ENDING = operator("ending", "ending")
LARGE = operator("large", "out of memory")
LONELY = operator("lonely")

OPERATORS = {each.name: each for each in (SCALED, ENDING, LARGE, LONELY)}
TABLE = f"{__name__}:OPERATORS"
