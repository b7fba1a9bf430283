"""Plain torch and its rivals on one example: who computes the same in less time?"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator, Result
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.errors import reason_of
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.proof import Side, Verdict, difference, saving, seconds_in_turn, tolerance
from lib_accel.graphs.timed import as_launched
from lib_accel.tuning.settings import allow_tf32_in_products

TORCH = "torch"  # the code of plain torch

Measure = Callable[[Mapping[str, Side], torch.device], Mapping[str, list[float]]]

_LEAST_S = 1e-3  # of what is timed at once: a call alone may be as short as the clock is inexact
_MOST_REPEATS = 100
_TOLD_FAULTS = 3
# What TF32 does to plain torch, it does to another order of the same sums as well, and not to both alike.
_TF32_SHARE = 2.0


class _Out(Exception):
    """An implementation that is not to be had, or not as good. The message says why."""


class UnsoundError(Exception):
    """This process can time nothing any more, as after a capture that CUDA gave up. The message says why."""


def hold(
    operator: Operator, args: Arguments, launcher: Launcher | None, measure: Measure = seconds_in_turn
) -> Verdict:
    """The winner by name, or TORCH: the fastest that differs by rounding only and gains more than noise.

    args: an example, which the contest has for itself. launcher: what records calls where they are replayed.
    Raises LookupError if there is no rival, UnsoundError, and what plain torch raises.
    """
    rivals = operator.others(*args)
    if not rivals:
        raise LookupError(f"nothing but {TORCH} takes its arguments here")
    right = operator.plain(*args)
    device, limit = tensors_of(right)[0].device, _limit(operator, args, right)
    apart: dict[str, float] = {}
    faults: list[str] = []
    sides: dict[str, Side] = {TORCH: lambda: operator.plain(*args)}
    for rival in rivals:
        try:
            apart[rival.name] = _apart(rival, args, right, limit)
        except _Out as error:
            faults.append(f"{rival.name}: {error}")
        else:
            sides[rival.name] = lambda rival=rival: rival.run(*args)  # type: ignore[misc]
    with as_launched(launcher, device) as launched:
        repeats = _repeats(sides[TORCH], device, measure)
        timed: dict[str, Side] = {}
        for name, side in sides.items():
            repeated = _repeated(side, repeats)
            timed[name] = launched(repeated)
            try:
                # What is timed is what will run: a recording lacks what is launched elsewhere.
                _demand_recorded(launcher, timed[name] is not repeated)
                _apart_from(timed[name](), right, limit)
            except _Out as error:
                if name == TORCH:
                    raise UnsoundError(f"plain torch cannot be timed: {error}") from error
                del timed[name]
                faults.append(f"{name}, replayed: {error}")
        del right
        seconds = measure(timed, device)
    code, reason = _winner(seconds)
    ms = {name: 1000 * statistics.median(each) / repeats for name, each in seconds.items()}
    return Verdict(code, "; ".join([reason, *_told(faults)]), apart.get(code), limit, ms)


def _demand_recorded(launcher: Launcher | None, is_recorded: bool) -> None:
    if launcher is None:
        return
    if (fault := launcher.fault()) is not None:
        raise UnsoundError(fault)
    if not is_recorded:
        raise _Out("it cannot be recorded")


def tensors_of(result: Result) -> tuple[Tensor, ...]:
    """The tensors that an operator gives, at least one."""
    return result if isinstance(result, tuple) else (result,)


def _apart(rival: Implementation, args: Arguments, right: Result, limit: float) -> float:
    """By how much its result differs. Raises _Out if that is too much, or if there is none."""
    try:
        return _apart_from(rival.run(*args), right, limit)
    except (_Out, *OUT_OF_MEMORY):
        raise
    except Exception as error:  # of drivers, of Triton's compiler
        raise _Out(reason_of(error)) from error


def _apart_from(result: Result, right: Result, limit: float) -> float:
    """By how much it differs where it does most, of all tensors. Raises _Out if that is too much."""
    form, wanted = _form(result), _form(right)
    if form != wanted:
        raise _Out(f"its result is {form}, should be {wanted}")
    apart = _difference(result, right)
    if math.isinf(apart):
        raise _Out("it is not finite where plain torch is, or the other way round")
    if not apart <= limit:
        raise _Out(f"it differs by {apart:.1e}, tolerated are {limit:.1e}")
    return apart


def _form(result: Result) -> str:
    return ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in tensors_of(result))


def _difference(result: Result, right: Result) -> float:
    apart = map(difference, tensors_of(result), tensors_of(right))
    return max(apart, key=lambda each: math.inf if math.isnan(each) else each)


def _limit(operator: Operator, args: Arguments, right: Result) -> float:
    dtypes = {each.dtype for each in tensors_of(right)}
    limit = tolerance(operator.name, _coarsest(args, max(dtypes, key=lambda each: torch.finfo(each).eps)))
    if torch.float32 in dtypes:
        with _without_tf32():
            limit += _TF32_SHARE * _difference(operator.plain(*args), right)
    return limit


def _coarsest(values: Iterable[Any], so_far: torch.dtype) -> torch.dtype:
    """The dtype that rounds most: of tensors, and of what they are cast to on the way."""
    for value in values:
        dtype = value.dtype if isinstance(value, Tensor) else value
        if isinstance(value, tuple):
            so_far = _coarsest(value, so_far)
        elif isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            so_far = max(so_far, dtype, key=lambda each: torch.finfo(each).eps)
    return so_far


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    in_products, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn
    in_convolutions, cudnn.allow_tf32 = cudnn.allow_tf32, False
    allow_tf32_in_products(False)
    try:
        yield
    finally:
        allow_tf32_in_products(in_products)
        cudnn.allow_tf32 = in_convolutions


def _repeats(side: Side, device: torch.device, measure: Measure) -> int:
    """How often a call is made in a row to be timed: the same for all."""
    once = statistics.median(measure({TORCH: side}, device)[TORCH])
    return max(1, min(_MOST_REPEATS, math.ceil(_LEAST_S / max(once, 1e-9))))


def _repeated(side: Side, times: int) -> Side:
    def run() -> Tensor:
        result = side()
        for _ in range(times - 1):
            result = side()
        return result

    return run


def _winner(seconds: Mapping[str, list[float]]) -> tuple[str, str]:
    """The fastest of those that gain for certain, and why."""
    plain = seconds[TORCH]
    gains = {name: saving(plain, each) for name, each in seconds.items() if name != TORCH}
    faster = [name for name, gain in gains.items() if gain > 0]
    if not faster:
        return TORCH, "nothing is faster"
    best = min(faster, key=lambda name: statistics.median(seconds[name]))
    return best, f"{100 * gains[best]:.0f} % less time than {TORCH}"


def _told(faults: Sequence[str]) -> list[str]:
    left = len(faults) - _TOLD_FAULTS
    return [*faults[:_TOLD_FAULTS], *([f"{left} more"] if left > 0 else [])]
