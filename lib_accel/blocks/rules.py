"""Which dtype each operation computes in and returns: what autocast would do, written down as a table.

Block functions run with autocast off and follow this table instead, so that they can be compiled and captured
without it, and so that nothing depends on the thread they run on. Sources: torch's autocast op lists
(https://pytorch.org/docs/stable/amp.html#autocast-op-reference), checked against the host's own blocks in
tests/blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from lib_accel.blocks.operators.operator import Tuned


class Pieces(NamedTuple):
    """From which size on an intermediate is made in pieces, and of which size those are; see pieces.py."""

    whole_bytes: int  # most that an intermediate has which exists as a whole
    piece_bytes: int  # about what one piece has


class Rules(NamedTuple):
    """Dtypes under one autocast state; None means that operands keep the dtype they come with."""

    matmul: torch.dtype | None = None  # convolution, linear, attention: operands are cast, result stays so
    norm: torch.dtype | None = None  # group and layer norm: likewise
    tuned: Tuned | None = None  # what computes the operators, or None for plain torch
    pieces: Pieces | None = None  # None for what is usual on the device

    def plain(self) -> Rules:
        """The same dtypes with all operators in plain torch, which is all that a compiler is told."""
        return self._replace(tuned=None, pieces=None)


# SiLU, GELU, addition and nearest interpolation are in no autocast list: torch's type promotion holds.
AS_IT_COMES = Rules()

# CUDA's autocast computes norms in float32 and returns them so; the CPU's leaves norms alone.
_NORM_BY_DEVICE_TYPE = {"cuda": torch.float32, "cpu": None}


def rules_for(device_type: str, autocast: torch.dtype | None) -> Rules:
    """The rules on a device ("cpu" or "cuda") with autocast to `autocast`, or without if that is None."""
    if autocast is None:
        return AS_IT_COMES
    return Rules(matmul=autocast, norm=_NORM_BY_DEVICE_TYPE[device_type])
