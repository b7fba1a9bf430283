"""The stand-ins of tuned.py in the process that holds contests, where each rival wins whatever else runs.

To import this replaces the clock of that process: a call takes a second, or two if it is to lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.operators.layout import CHANNELS_FIRST
from lib_accel.blocks.operators.operator import Implementation, Operator
from lib_accel.graphs import proof

from .tuned import OPERATORS as EQUAL
from .tuned import Run

_lost_s = 0.0


def _losing(run: Run) -> Run:
    def losing(*args: Any) -> Tensor:
        global _lost_s
        _lost_s += 1.0
        return run(*args)

    return losing


def _with_loser(operator: Operator) -> Operator:
    """The operator, of which plain torch loses, and so do images that have their channels first."""

    def others(*args: Any) -> Sequence[Implementation]:
        return [
            each._replace(run=_losing(each.run)) if each.name == CHANNELS_FIRST else each
            for each in operator.others(*args)
        ]

    return operator._replace(plain=_losing(operator.plain), others=others)


def _seconds(side: proof.Side, device: torch.device) -> float:
    before = _lost_s
    side()
    return 1.0 + _lost_s - before


proof._seconds = _seconds
proof._LONGEST_S = 0.0  # the fewest rounds, which all say the same
OPERATORS = {name: _with_loser(operator) for name, operator in EQUAL.items()}
