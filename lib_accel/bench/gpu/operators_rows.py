"""Rows of operators: contests in this process as the tuner holds them in another, at sizes of models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_accel.bench.gpu.counting import costs
from lib_accel.bench.gpu.floors import floor_ms
from lib_accel.bench.gpu.models import Where
from lib_accel.bench.gpu.operators_calls import call_at
from lib_accel.bench.gpu.operators_shapes import ENOUGH, NEAR, SHAPES, Shape, toy_of
from lib_accel.bench.gpu.parts import Case
from lib_accel.bench.gpu.sides import Makers
from lib_accel.bench.gpu.timing import Pace, Turn, alone_ms
from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.blocks.operators.table import OPERATORS
from lib_accel.graphs.cuda_graph import launcher_of_this_process
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.proof import Verdict
from lib_accel.tuning.contest import TORCH, hold, tensors_of
from lib_accel.tuning.signature import Call, example

Figures = dict[str, Any]


class Ring(NamedTuple):
    """Where contests are held."""

    where: Where
    pace: Pace

    @property
    def launcher(self) -> Launcher | None:
        """What records calls, where they are replayed."""
        return launcher_of_this_process() if self.where.device.type == "cuda" else None

    def call(self, shape: Shape) -> Call:
        """The call at that shape, or at a tiny one in a dry run."""
        return call_at(toy_of(shape) if self.where.is_toy else shape, self.where)


class OperatorStand(NamedTuple):
    """A case of operators as its row finds it."""

    case: Case
    ring: Ring


@contextlib.contextmanager
def operator_stand(case: Case, where: Where, pace: Pace, makers: Makers) -> Iterator[OperatorStand]:
    """The stand for the block; nothing is recorded there with gradients."""
    with torch.no_grad():
        yield OperatorStand(case, Ring(where, pace))


def operator_row(stand: OperatorStand, name: str) -> Figures:
    """Plain torch and all implementations at one size: times, who wins, and how near the floor that is."""
    call = stand.ring.call(SHAPES[stand.case.name])
    operator, args = OPERATORS[call.operator], example(call)
    verdict = contest(operator, args, stand.ring)
    flop, moved = work_of(operator, args)
    least = floor_ms(flop, moved)
    return {
        **told(verdict),
        "operator": operator.name,
        "size": call.size,
        "out": why_out(operator, args, verdict),
        "flop": flop,
        "least_bytes": moved,
        "floor_ms": least,
        "floor_share": least / verdict.ms[verdict.code],
        "plain_floor_share": least / verdict.ms[TORCH],
    }


def near_row(stand: OperatorStand, name: str) -> Figures:
    """The winner of one size at others of its class, against the winners that those have themselves."""
    near = NEAR[stand.case.name]
    tuned = _verdict_at(near.tuned, stand.ring)
    others = [_near(shape, tuned.code, stand.ring) for shape in near.others]
    shares = [each["share"] for each in others]
    return {
        **told(tuned),
        "operator": near.tuned.operator,
        "others": others,
        "share": None if None in shares else min(shares),
        "is_enough": all(share is not None and share >= ENOUGH for share in shares),
    }


def contest(operator: Operator, args: Arguments, ring: Ring) -> Verdict:
    """The tuner's verdict; plain torch with its time where nothing else takes the arguments."""
    if operator.others(*args):
        return hold(operator, args, ring.launcher)
    alone = alone_ms(Turn.of(lambda: operator.plain(*args)), ring.where.device, ring.pace)
    return Verdict(TORCH, f"nothing but {TORCH} takes its arguments here", ms={TORCH: median(alone)})


def told(verdict: Verdict) -> Figures:
    """A verdict in the columns of rows."""
    ms, plain_ms = verdict.ms[verdict.code], verdict.ms[TORCH]
    return {
        "ms": ms,
        "stock_ms": plain_ms,
        "ratio": plain_ms / ms,
        "winner": verdict.code,
        "reason": verdict.reason,
        "difference": verdict.difference,
        "tolerance": verdict.tolerance,
        "implementations": dict(verdict.ms),
    }


def why_out(operator: Operator, args: Arguments, verdict: Verdict) -> dict[str, str]:
    """By name why implementations were not timed, each of which is asked once more."""
    missing = [each for each in operator.others(*args) if each.name not in verdict.ms]
    return {each.name: _why_out(operator, args, each) for each in missing}


def work_of(operator: Operator, args: Arguments) -> tuple[float, int]:
    """FLOP of the operator in plain torch, and bytes that anybody reads and writes at least."""
    flop = sum(costs(lambda: operator.plain(*args)).flop.values())
    results = tensors_of(operator.plain(*args))
    tensors = [each for each in (*args, *results) if isinstance(each, Tensor)]
    return flop, sum(each.nbytes for each in tensors)


def _why_out(operator: Operator, args: Arguments, rival: Implementation) -> str:
    alone = operator._replace(others=lambda *_: (rival,))
    verdict = hold(alone, args, None, lambda sides, device: {side: [1.0] for side in sides})
    return verdict.reason.partition(f"{rival.name}: ")[2] or "it could be had at a second try only"


def _verdict_at(shape: Shape, ring: Ring) -> Verdict:
    call = ring.call(shape)
    return contest(OPERATORS[call.operator], example(call), ring)


def _near(shape: Shape, winner: str, ring: Ring) -> Figures:
    """`winner` at another size. Its share is None where it cannot be had there: plain torch would run."""
    verdict = _verdict_at(shape, ring)
    taken_ms = verdict.ms.get(winner)
    return {
        **told(verdict),
        "size": shape.name.partition(": ")[2],
        "taken": winner,
        "taken_ms": taken_ms,
        "share": None if taken_ms is None else verdict.ms[verdict.code] / taken_ms,
    }
