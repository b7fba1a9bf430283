"""What large pictures hold of memory and how long they take: stock, ours as a whole and in pieces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lib_accel.bench.comparison import relative_l2
from lib_accel.bench.cuts import WHOLE, cut_by
from lib_accel.bench.environment import environment
from lib_accel.bench.measure import Stand, standing
from lib_accel.bench.models import CONTEXT, TOKENS
from lib_accel.bench.peaks import peak
from lib_accel.bench.stats import interval
from lib_accel.bench.suites import Case
from lib_accel.bench.table import aligned
from lib_accel.bench.timing import ACCELERATED, STOCK

# Ours by how it cuts.
IN_WHOLE, IN_PIECES = "whole", "pieces"
SIDES = (STOCK, IN_WHOLE, IN_PIECES)


@dataclass(frozen=True)
class MemoryCase:
    """One call of a model of small width at a large size."""

    name: str
    model: str  # "vae" or "unet"
    side: int  # of the latents, an eighth of the picture's
    quick: bool = False


CASES = (
    MemoryCase("VAE decode, 512 x 512", "vae", 64, quick=True),
    MemoryCase("VAE decode, 1024 x 1024", "vae", 128),
    MemoryCase("UNet, 640 x 640", "unet", 80),
)

_PAIRS = 3  # of calls that take seconds each
_SMALL = 8  # latents' side of a call that only makes models known

Tell = Callable[[str], object]


def memory_suite(*, is_quick: bool, tell: Tell) -> dict[str, Any]:
    """Figures of all cases, or of the quick ones; `tell` hears of each as it begins."""
    pairs, cases = 1 if is_quick else _PAIRS, []
    with standing(Case("memory")) as stand:
        for case in CASES:
            if case.quick or not is_quick:
                tell(case.name)
                cases.append(_figures(stand, case, pairs))
    return {
        "cases": cases,
        "environment": environment(torch.device("cpu")) | {"suite": "memory", "pairs": pairs},
    }


def _figures(stand: Stand, case: MemoryCase, pairs: int) -> dict[str, Any]:
    results, peaks = {}, {}
    for side in SIDES:
        with _placed(stand, case, side) as call:
            results[side] = call()
            peaks[side] = peak(call, torch.device("cpu")).allocated
    ms = _in_turn(stand, case, pairs)
    ratios = [whole / cut for whole, cut in zip(ms[IN_WHOLE], ms[IN_PIECES], strict=True)]
    return {
        "name": case.name,
        "peak_mib": peaks,
        "peak_of_stock": peaks[IN_PIECES] / peaks[STOCK],
        "ms": {side: median(times) for side, times in ms.items()},
        "whole_to_pieces": median(ratios),  # above 1, pieces are faster
        "whole_to_pieces_low95": interval(ratios)[0],
        "rel_l2": relative_l2(results[IN_PIECES], results[STOCK]),
    }


def _in_turn(stand: Stand, case: MemoryCase, pairs: int) -> dict[str, list[float]]:
    """Milliseconds of a call of each side, in the order A B C C B A.

    They are the process's own, of all its threads: calls of seconds are interrupted by others.
    """
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(pairs):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            with _placed(stand, case, side) as call:
                began = time.process_time()
                call()
                times[side].append(1000 * (time.process_time() - began))
    return times


@contextlib.contextmanager
def _placed(stand: Stand, case: MemoryCase, side: str) -> Iterator[Callable[[], Tensor]]:
    """The side's call, of models that have met a small one."""
    model = _MODELS[case.model]
    with cut_by(WHOLE) if side == IN_WHOLE else contextlib.nullcontext():
        pipe = stand.turn(STOCK if side == STOCK else ACCELERATED)
        model(pipe, _SMALL)
        yield lambda: model(pipe, case.side)


def _decode(pipe: Any, side: int) -> Tensor:
    with torch.no_grad():
        decoded: Tensor = pipe.vae.decode(_normal(1, 4, side, side)).sample
    return decoded


def _denoise(pipe: Any, side: int) -> Tensor:
    """As a step with guidance does."""
    with torch.no_grad():
        context = _normal(2, TOKENS, CONTEXT)
        noise: Tensor = pipe.unet(_normal(2, 4, side, side), 500, encoder_hidden_states=context).sample
    return noise


_MODELS: Mapping[str, Callable[[Any, int], Tensor]] = {"vae": _decode, "unet": _denoise}


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def memory_table(report: Mapping[str, Any]) -> str:
    """A line each case."""
    headings = (
        "case",
        "stock MiB",
        "whole MiB",
        "pieces MiB",
        "of stock",
        "stock ms",
        "whole / pieces",
        "rel-L2",
    )
    return aligned(
        headings,
        [
            [
                case["name"],
                *(f"{case['peak_mib'][side]:.0f}" for side in SIDES),
                f"{case['peak_of_stock']:.2f}",
                f"{case['ms'][STOCK]:.0f}",
                f"{case['whole_to_pieces']:.3f}",
                f"{case['rel_l2']:.1e}",
            ]
            for case in report["cases"]
        ],
    )
