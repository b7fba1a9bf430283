"""The operator that merges LoRAs with a rival on the CPU, in a table that a contest can be held of."""

from __future__ import annotations

import time

from torch import Tensor

from lib_accel.blocks.operators.operator import Implementation
from lib_accel.lora import merge
from tests.lora.together import StandIn

RIVAL = "stand-in"
SLOW_S = 0.01  # of plain torch: so much that the rival's gain cannot be missed

WAY = StandIn()


def _plain(bases: Tensor, ups: Tensor, downs: Tensor) -> Tensor:
    time.sleep(SLOW_S)
    return merge.plain(bases, ups, downs)


MERGE = merge.MERGE._replace(plain=_plain, others=lambda *args: [Implementation(RIVAL, WAY)])
OPERATORS = {MERGE.name: MERGE}
TABLE = f"{__name__}:OPERATORS"
