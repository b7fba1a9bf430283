"""A block computed by each code in turn on the same live inputs: do they agree, and which is the fastest?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

HOST, DIRECT, COMPILED = "host", "direct", "compiled"
WITH_KERNELS = (
    "compiled with kernels"  # with those operators left whole that have an implementation of their own
)
COMPILED_CODES = (COMPILED, WITH_KERNELS)

Side = Callable[[], Tensor]

# Largest difference, as a share of the output's length (relative L2 norm). A graph joins operations, so that
# it rounds in other places: by some units in the last place, in half precision after each joined operation.
# Blocks of 320 to 1280 channels differ by a tenth of this; a missing bias gives a third of the length.
_TOLERANCES: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
)
# Softmax and the residual sums of three parts carry more of it.
_FACTORS: Mapping[str, float] = MappingProxyType({"transformer block": 2.0, "image attention": 2.0})

ROUNDS = 5  # of each side, forth and back
_LONGEST_S = 1.0  # of the rounds of one proof; there are three in any case
_FEWEST_ROUNDS = 3
_LEAST_GAIN = 0.03  # share of the time; less is noise on any machine


@dataclass(frozen=True)
class Verdict:
    """Which code a block runs, and why; or, of an operator, which implementation (tuning)."""

    code: str  # HOST, DIRECT or one of COMPILED_CODES
    reason: str
    difference: float | None = None  # of compiled from direct, relative L2 norm
    tolerance: float | None = None
    ms: Mapping[str, float] = field(default_factory=dict)  # median by code


def tolerance(kind: str, dtype: torch.dtype) -> float:
    """How far two codes of this kind may be apart, as a share of the output's length."""
    return _TOLERANCES.get(dtype, _TOLERANCES[torch.float32]) * _FACTORS.get(kind, 1.0)


def prove(
    sides: Mapping[str, Side],
    kind: str,
    *,
    is_forced: bool = False,
    launched: Callable[[Side], Side] = lambda side: side,
) -> Verdict:
    """The code to run from now on, of those that `sides` computes: DIRECT, and some of the others.

    DIRECT is what a block runs that nothing speaks against. Compiled codes must agree with it, and with HOST
    if that is there, and be faster by more than the noise, or only agree if `is_forced`. HOST must be faster
    than all. Costs some runs of the block by each code, two if it is forced.

    launched: our side as it is launched when nothing is measured; the host's is never launched otherwise.
    """
    outputs = {code: side() for code, side in sides.items()}
    device, limit = outputs[DIRECT].device, tolerance(kind, outputs[DIRECT].dtype)
    compiled = [code for code in COMPILED_CODES if code in outputs]
    apart = {code: difference(outputs[code], outputs[DIRECT]) for code in compiled}
    faults = {code: _fault(code, outputs, limit, apart[code]) for code in compiled}
    del outputs
    running = {code: side for code, side in sides.items() if not faults.get(code)}
    running = {code: side if code == HOST else launched(side) for code, side in running.items()}
    times = seconds_in_turn(running, device, rounds=1 if is_forced else ROUNDS)
    ms = {code: 1000 * statistics.median(each) for code, each in times.items()}
    code, reason = _choice(times, is_forced=is_forced)
    told = [*([reason] if code in compiled else []), *filter(None, faults.values())] or [reason]
    return Verdict(code, "; ".join(told), apart.get(code, min(apart.values(), default=None)), limit, ms)


def difference(first: Tensor, second: Tensor) -> float:
    """Relative L2 norm of the difference; infinite if the same places do not hold the same NaN and Inf."""
    if first.shape != second.shape or first.dtype is not second.dtype:
        return math.inf
    wide = torch.promote_types(first.dtype, torch.float32)
    first, second = first.to(wide), second.to(wide)
    if not bool(torch.isfinite(first).all() & torch.isfinite(second).all()):
        for is_odd in (torch.isnan, torch.isposinf, torch.isneginf):
            if not torch.equal(is_odd(first), is_odd(second)):
                return math.inf
        first, second = (torch.nan_to_num(each, 0.0, 0.0, 0.0) for each in (first, second))
    length = float(second.norm())
    apart = float((first - second).norm())
    return apart / length if length else (0.0 if not apart else math.inf)


def _fault(code: str, outputs: Mapping[str, Tensor], limit: float, apart: float) -> str:
    """Why a compiled code may not run, which is so far apart from direct; empty if it may."""
    if not apart <= limit:  # nor if it is NaN, of lengths that float32 cannot hold
        return f"{code} differs from direct by {apart:.1e}, tolerated are {limit:.1e}"
    if HOST in outputs:
        # What direct and the host are apart by themselves is the order of their sums, not the graph's fault.
        apart = difference(outputs[code], outputs[HOST])
        allowed = limit + difference(outputs[DIRECT], outputs[HOST])
        if not apart <= allowed or math.isinf(apart):
            return f"{code} differs from the host's block by {apart:.1e}, tolerated are {allowed:.1e}"
    return ""


def seconds_in_turn(
    sides: Mapping[str, Side], device: torch.device, *, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of each side, forth and back in turn, so that none has the quieter half."""
    times: dict[str, list[float]] = {code: [] for code in sides}
    began = time.perf_counter()
    order = list(sides)
    for number in range(rounds):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - began > _LONGEST_S:
            break
        for code in (*order, *reversed(order)):
            times[code].append(_seconds(sides[code], device))
    return times


def _seconds(side: Side, device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    side()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _choice(times: Mapping[str, list[float]], *, is_forced: bool) -> tuple[str, str]:
    if is_forced:
        return next((code for code in COMPILED_CODES if code in times), DIRECT), "asked for"
    best, reason = DIRECT, "nothing is faster"
    for code in (*COMPILED_CODES, HOST):
        if code in times and (gain := saving(times[best], times[code])) > 0:
            best, reason = code, f"{100 * gain:.0f} % less time than {best}"
    return best, reason


def saving(slower: list[float], faster: list[float]) -> float:
    """Share of the time that is saved, or 0 if that could be noise: nine of ten pairs must show it.

    That leaves some gains unseen, on a busy machine most; what is not clear stays as it is.
    """
    pairs = sorted(1 - b / a for a, b in zip(slower, faster, strict=True))
    gain = pairs[len(pairs) // 10]
    return gain if gain > _LEAST_GAIN else 0.0
