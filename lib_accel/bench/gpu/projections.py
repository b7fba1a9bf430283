"""Is one weight of query, key and value worth its memory? Three linear layers against one.

The host's weights stay as they are, since others read and change them: a packed weight is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.bench.gpu import parts
from lib_accel.bench.gpu.models import Where
from lib_accel.bench.gpu.operators_rows import Figures, OperatorStand, contest, told
from lib_accel.bench.gpu.operators_shapes import LEVELS, PROJECTIONS, Level
from lib_accel.bench.gpu.sides import SideError
from lib_accel.blocks.operators import attention
from lib_accel.blocks.operators.operator import Implementation, Operator
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.signature import Call, Form, example

PACKED = "packed"

_TOY = Level(6, 64, 2, 1)


def projection_row(stand: OperatorStand, name: str) -> Figures:
    """What a packed weight saves at one level, and in a step of the model, and what it takes of memory."""
    model, level = PROJECTIONS[stand.case.name]
    operator, ring = _OPERATORS[name], stand.ring
    args = example(call_at(operator, _TOY if ring.where.is_toy else level, ring.where))
    verdict = contest(operator, args, ring)
    if PACKED not in verdict.ms:
        raise SideError(verdict.reason)
    ms, plain_ms = verdict.ms[PACKED], verdict.ms[TORCH]
    return {
        **told(verdict),
        # Of packed, be it the winner or not: that is what is asked.
        "ms": ms,
        "ratio": plain_ms / ms,
        "layers": level.layers,
        "gain_of_step_ms": level.layers * (plain_ms - ms),
        "copies_mib": copies_bytes([level], ring.where.dtype) / 2**20,
        "copies_of_model_mib": copies_bytes(LEVELS[model], ring.where.dtype) / 2**20,
    }


def copies_bytes(levels: Sequence[Level], dtype: torch.dtype) -> int:
    """What packed copies of the weights of these self-attentions take."""
    return sum(3 * level.channels**2 * level.layers for level in levels) * dtype.itemsize


def call_at(operator: Operator, level: Level, where: Where) -> Call:
    """The operator's call with the tokens of two pictures."""

    def tensor(*sizes: int) -> Form:
        stride = torch.empty(sizes, device="meta").stride()
        return Form(sizes, stride, where.dtype, str(where.device))

    weight = tensor(level.channels, level.channels)
    x = tensor(2, level.tokens, level.channels)
    return Call(operator.name, (x, weight, weight, weight, level.heads))


def _apart(x: Tensor, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Sequence[Tensor]:
    return [F.linear(x, weight) for weight in (query, key, value)]


class _Packed:
    """One product with a copy of all three weights, which is made once; the results are views of it."""

    def __init__(self, end: Callable[[Sequence[Tensor], int], Tensor]) -> None:
        self._end = end
        self._weight: Tensor | None = None

    def __call__(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        if self._weight is None:
            self._weight = torch.cat((query, key, value))
        return self._end(F.linear(x, self._weight).chunk(3, dim=-1), heads)


def _last(results: Sequence[Tensor], heads: int) -> Tensor:
    """The values: a contest compares one tensor, and all three are computed."""
    return results[-1]


def _attended(results: Sequence[Tensor], heads: int) -> Tensor:
    query, key, value = results
    return attention.plain(query, key, value, heads, None)


def _operator(name: str, end: Callable[[Sequence[Tensor], int], Tensor]) -> Operator:
    def plain(*args: Any) -> Tensor:
        return end(_apart(*args), args[-1])

    def others(*args: Any) -> Sequence[Implementation]:
        return (Implementation(PACKED, _Packed(end)),)

    varies: tuple[tuple[int, ...], ...] = ((0, 1), (), (), (), ())
    return Operator(name, plain, others, varies)


# By the name of the side.
_OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        parts.PROJECTIONS_ALONE: _operator("projections", _last),
        parts.PROJECTIONS_ATTENDED: _operator("projections, attention", _attended),
    }
)
