"""A way to merge LoRAs that stands for the kernel on a CPU, and notes what it was asked to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.kernels.lora_fuse import Layer
from lib_accel.lora import merge
from lib_accel.lora.accumulate import writing
from tests.fakes.tuning import Taking


class StandIn:
    """merge.Way: computes in float64 and rounds once."""

    def __init__(self, *, fails_at: int | None = None, error: type[Exception] = RuntimeError) -> None:
        """`fails_at`: the number of the group at which it raises, with weights half written."""
        self.groups: list[list[Layer]] = []
        self.refused: set[int] = set()  # addresses of weights that it does not take
        self.fails_at, self.error = fails_at, error

    def __call__(self, bases: Tensor, ups: Tensor, downs: Tensor) -> Tensor:
        return bases + 0.5 * (ups @ downs).to(bases.dtype)

    def why_not(self, layers: Sequence[Layer]) -> Sequence[str]:
        return ["refused"] if any(each.live.data_ptr() in self.refused for each in layers) else []

    def write(self, layers: Sequence[Layer]) -> None:
        assert torch.is_grad_enabled() is False
        if self.fails_at == len(self.groups):
            self.fails_at = None
            layers[0].live.zero_()
            raise self.error("no kernel")
        self.groups.append(list(layers))
        for live, base, pairs in layers:
            total = base.double().flatten(1)
            for up, down, scale in pairs:
                total = total + scale * up.double() @ down.double()
            with writing(live):
                live.copy_(total.view(live.shape))

    @property
    def sizes(self) -> list[int]:
        """How many weights each group had."""
        return [len(group) for group in self.groups]


def taking(way: StandIn) -> Taking:
    """operator.Tuned that merges LoRAs by that."""
    return Taking(merge.MERGE.name, way)


class ByKind:
    """operator.Tuned that has another way for some calls, and notes all of them."""

    def __init__(self, way: StandIn, takes: Any = lambda args: True) -> None:
        self.asked: list[Arguments] = []
        self._implementation, self._takes = Implementation("stand-in", way), takes

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        self.asked.append(args)
        return self._implementation if self._takes(args) else None

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        raise error
