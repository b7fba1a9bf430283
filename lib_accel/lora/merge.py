"""The operator that merges LoRAs into weights of one shape: a kernel with each of its tiles beside write_sum.

Sets of networks differ in how many weights they change, so real weights are not merged by a call of it. Such
a call is only asked about: what was chosen for it then merges the weights that it stands for (groups.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator, Tuned
from lib_accel.blocks.operators.shell import Shell
from lib_accel.kernels import lora_fuse
from lib_accel.kernels.configs import Product
from lib_accel.kernels.lora_fuse import Layer, Pair
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.terms import Factors

_STRENGTH = 0.5  # of what is merged in a contest
_RANKS = 16  # that the kernel multiplies at once: fewer take as long
_LEAST_SIZE = 10  # 2**10 elements; all smaller weights count as so large
_ELEMENTS, _FEWEST, _MOST = 2**25, 2, 16  # of a contest together, and how many weights that may be


class MergeKind(NamedTuple):
    """What decides how a weight is merged: it and its networks, whatever else is written with it.

    So the same networks in a weight are the same bits, however it came to carry them.
    """

    device: torch.device
    dtype: torch.dtype
    factors: torch.dtype
    size: int  # the weight's elements are near this power of two
    rank: int  # of all networks together, up to the nearest power of two

    @classmethod
    def of(cls, weight: Tensor, factors: torch.dtype, ranks: Sequence[int]) -> MergeKind:
        """The kind of a weight that gets factors of these ranks."""
        padded = sum(-(-rank // _RANKS) * _RANKS for rank in ranks)
        size = max(_LEAST_SIZE, _nearest_power(weight.numel()))
        return cls(weight.device, weight.dtype, factors, size, 2 ** _nearest_power(padded))


class Way(Protocol):
    """How an implementation other than plain torch merges: the `run` of one."""

    def __call__(self, bases: Tensor, ups: Tensor, downs: Tensor) -> Tensor:
        """As `plain`."""

    def why_not(self, layers: Sequence[Layer]) -> Sequence[str]:
        """Reasons for which it cannot take these real weights, all of one shape; empty if it can."""

    def write(self, layers: Sequence[Layer]) -> None:
        """Makes each `live` its base and the sum of its pairs, computed in float32 and rounded once."""


@dataclass(frozen=True)
class ByKernel:
    """The way of our kernel by one of its tiles: a launch for all weights."""

    tile: Product

    def __call__(self, bases: Tensor, ups: Tensor, downs: Tensor) -> Tensor:
        """As `plain`."""
        result = torch.empty_like(bases)
        each = zip(result, bases, ups, downs, strict=True)
        self.write([Layer(live, base, [Pair(up, down, _STRENGTH)]) for live, base, up, down in each])
        return result

    def why_not(self, layers: Sequence[Layer]) -> Sequence[str]:
        """Reasons for which it cannot take these weights."""
        return lora_fuse.why_not(layers)

    def write(self, layers: Sequence[Layer]) -> None:
        """Writes the weights."""
        lora_fuse.launch(layers, tile=self.tile)


def plain(bases: Tensor, ups: Tensor, downs: Tensor) -> Tensor:
    """`bases + 0.5 * ups @ downs` of some weights in one tensor, layer by layer, as `write_sum` has it.

    bases: (weights, out, in), ups: (weights, out, rank), downs: (weights, rank, in).
    """
    result = torch.empty_like(bases)
    for live, base, up, down in zip(result, bases, ups, downs, strict=True):
        write_sum(live, base, [Factors(up, down, _STRENGTH)])
    return result


def others(bases: Tensor, ups: Tensor, downs: Tensor) -> Sequence[Implementation]:
    """Our kernel with each of its tiles. Of the tensors only shapes, dtypes and device are asked."""
    if lora_fuse.why_not_dtypes(bases.device, bases.dtype, ups.dtype):
        return ()
    tiles = lora_fuse.tiles_for(ups.dtype, ups.shape[-1])
    return [Implementation(f"Triton, {tile!r}", ByKernel(tile)) for tile in tiles]


MERGE = Operator("merge LoRAs", plain, others, ((), (), ()))


def chosen_for(kind: MergeKind, tuned: Tuned) -> Implementation | None:
    """What was chosen for weights of a kind, whose `run` is a Way; None for write_sum."""
    return tuned.implementation(MERGE, asked(kind))


def way_of(implementation: Implementation) -> Way:
    """How an implementation of MERGE merges real weights."""
    return cast(Way, implementation.run)


@lru_cache(maxsize=256)
def asked(kind: MergeKind) -> Arguments:
    """The call that stands for weights of a kind: some nearly square ones. Its tensors have no memory."""
    device, dtype, factors, size, rank = kind
    count = max(_FEWEST, min(_MOST, _ELEMENTS >> size))
    height, width = 2 ** (size - size // 2), 2 ** (size // 2)
    sides = ((height, width, dtype), (height, rank, factors), (rank, width, factors))
    return tuple(Shell((count, a, b), (a * b, b, 1), each, device) for a, b, each in sides)


def _nearest_power(number: int) -> int:
    return round(math.log2(max(number, 1)))
