"""One row of the suite of GPUs: a side of a case against stock in the same process."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib_accel.bench.comparison import relative_l2
from lib_accel.bench.gpu.counting import costs, launches
from lib_accel.bench.gpu.floors import case_floor_ms
from lib_accel.bench.gpu.parts import STOCK
from lib_accel.bench.gpu.sides import Call, Makers, Side, SideError, side
from lib_accel.bench.gpu.stage import Stage
from lib_accel.bench.gpu.timing import Pace, Turn, alone_ms, paired_ms, ratio_figures
from lib_accel.device import OUT_OF_MEMORY

Figures = dict[str, Any]

# Attention functions of torch that stock itself may take: how far they are apart is what stock leaves open.
_OTHER = {"cuda": SDPBackend.EFFICIENT_ATTENTION, "cpu": SDPBackend.MATH}


class Stock(NamedTuple):
    """What is known of a case before any other side is there."""

    expected: Tensor
    exact: Tensor | None  # in float32, if there is memory for that
    yardstick: float | str  # relative L2 of flash from efficient attention, or why there is none
    peak_mib: float | None
    floor_ms: float
    floor_source: str
    flop: float


def stock_of(stage: Stage) -> Stock:
    """Runs stock by itself."""
    case, device = stage.case, stage.where.device
    for _ in range(2):
        stage.call()
    expected = stage.call()
    peak = peak_mib(stage.call, device)
    flop = sum(costs(stage.call).flop.values())
    side_px = 0 if stage.where.is_toy else case.side_px  # a toy's floor is in no table
    weight_bytes = sum(each.numel() * each.element_size() for each in stage.root.parameters())
    floor, source = case_floor_ms(
        case.model, side_px, case.pictures, controls=case.controls, flop=flop, weight_bytes=weight_bytes
    )
    return Stock(expected, _exact(stage), _yardstick(stage), peak, floor, source, flop)


class Stand:
    """A case as its rows find it; stock runs alone once, when a row first needs what it says."""

    def __init__(self, stage: Stage, pace: Pace, makers: Makers) -> None:
        self.stage, self.pace, self.makers = stage, pace, makers

    @functools.cached_property
    def stock(self) -> Stock:
        """Of this stage."""
        return stock_of(self.stage)


def speed_row(stand: Stand, name: str) -> Figures:
    """All figures of a side: times against stock's, launches, memory, difference, seconds to get there."""
    stock, pace = stand.stock, stand.pace
    stage, device = stand.stage, stand.stage.where.device
    with placed(name, stand) as one:
        spent = one.prepare()
        with one.turn() as call:
            result = call().clone()
            if not bool(torch.isfinite(result).all()):
                raise SideError("its output holds NaN or Inf")
            peak = peak_mib(call, device)
        if name == STOCK:
            times = alone_ms(Turn(one.turn, one.settle), device, pace)
            speed: Figures = {"ms": median(times), "stock_ms": median(times), "ratio": 1.0}
        else:
            speed = ratio_figures(
                paired_ms(_stocks_turn(stage, one), Turn(one.turn, one.settle), device, pace)
            )
        about = dict(one.about())
        with one.turn() as call:  # last: compiled code that is looked at is not taken any more
            counted = launches(call, device, has_operations=one.passes_dispatcher)
    calls_s = 1000 / speed["ms"]
    return {
        **speed,
        "calls_per_s": calls_s,
        "floor_ms": stock.floor_ms,
        "floor_share": stock.floor_ms / speed["ms"],
        "floor_source": stock.floor_source,
        "flop": stock.flop,
        **counted,
        "peak_mib": None if peak is None else peak - one.own_mib,
        "stock_peak_mib": stock.peak_mib,
        "compile_s": spent.compile_s,
        "warmup_s": spent.warmup_s,
        "measure_s": spent.measure_s,
        "norm": float(result.double().norm()),
        "rel_l2": relative_l2(result, stock.expected),
        "max_abs": float((result.double() - stock.expected.double()).abs().max()),
        "rel_l2_fp32": None if stock.exact is None else relative_l2(result, stock.exact),
        "stock_rel_l2_fp32": None if stock.exact is None else relative_l2(stock.expected, stock.exact),
        "yardstick": stock.yardstick,
        "about": about,
    }


@contextlib.contextmanager
def placed(name: str, stand: Stand) -> Iterator[Side]:
    """The side for the block, and everything as it was after it."""
    one = side(name, stand.stage, stand.makers)
    try:
        yield one
    finally:
        one.close()
        del one
        _free(stand.stage.where.device)


def peak_mib(call: Callable[[], Any], device: torch.device) -> float | None:
    """The most memory that torch holds of the GPU during some calls; None where there is no GPU."""
    if device.type != "cuda":
        return None
    _free(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_reserved(device) / 2**20


def _stocks_turn(stage: Stage, one: Side) -> Turn:
    @contextlib.contextmanager
    def place() -> Iterator[Call]:
        with one.away():
            yield stage.call

    return Turn(place)


def _exact(stage: Stage) -> Tensor | None:
    try:
        # Else convolutions in float32 are computed with the mantissa of half precision.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return stage.exact().call()
    except OUT_OF_MEMORY:  # a second, wider copy of the weights is worth no row
        return None
    finally:
        _free(stage.where.device)


def _yardstick(stage: Stage) -> float | str:
    other = _OTHER[stage.where.device.type]
    try:
        return relative_l2(
            _attending(stage, [SDPBackend.FLASH_ATTENTION]),
            _attending(stage, [other]),
        )
    except RuntimeError as error:  # none of its kernels takes these heads
        return str(error).strip().splitlines()[0]


def _attending(stage: Stage, backends: Sequence[SDPBackend]) -> Tensor:
    with sdpa_kernel(list(backends)):
        return stage.call()


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
