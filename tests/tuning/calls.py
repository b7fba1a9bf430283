"""Contests as they are asked for, and waiting for what another thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from lib_accel.blocks.operators.operator import Operator
from lib_accel.graphs.proof import Verdict
from lib_accel.tuning.settings import Settings
from lib_accel.tuning.signature import call_of
from lib_accel.tuning.worker import Answer, Contest
from tests.tuning.rooms import SCALED, TABLE

ENOUGH_S = 60.0  # for anything here, on any machine

ARGS = (torch.ones(1, 4, 8, 8), 2.0)
LARGER = (torch.ones(1, 4, 16, 16), 2.0)
LARGEST = (torch.ones(1, 4, 32, 32), 2.0)

QUICK = Answer(Verdict("quick", "50 % less time than torch", 0.0, 2e-6, {"torch": 2.0, "quick": 1.0}), True)


def contest(operator: Operator = SCALED, args: tuple[object, ...] = ARGS) -> Contest:
    return Contest(TABLE, call_of(operator, args), False, Settings.now())


def wait_until(holds: Callable[[], bool]) -> None:
    """For what another thread does."""
    last = time.monotonic() + ENOUGH_S
    while not holds():
        assert time.monotonic() < last
        time.sleep(0.001)
