"""Tiles of kernels/configs.py and those near them, timed against the table's own, to correct the tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lib_accel.bench.gpu.kernels_cases import all_tiles
from lib_accel.bench.gpu.kernels_rows import Figures, KernelStand, chosen_way, replayed
from lib_accel.bench.gpu.kernels_subjects import Way
from lib_accel.bench.gpu.parts import KERNEL
from lib_accel.bench.gpu.timing import Turn, paired_ms, ratio_figures

_PAIRS = 5
_MOST_WARPS = 16


def tuning_row(stand: KernelStand, name: str) -> Figures:
    """The tile that a shape gets, what others may be had and by how much each is faster, and the best one.

    In a dry run without Triton there is no launch, and so no tile.
    """
    chosen = chosen_way(stand, KERNEL)
    if chosen.about:
        return {"tile": None, "best": None, "ratio": 1.0, "tried": [], "about": chosen.about}
    own, *others = stand.subject.candidates(*stand.subject.inputs)
    rivals = dict.fromkeys((*others, *all_tiles(stand.shape, stand.gpu), *neighbours(own)))
    tried = [_tried(stand, own, other) for other in rivals if other != own]
    # Below 1 in the whole interval is noise or worse: the table's own tile stays the best then.
    faster = [each for each in tried if each.get("ratio_low95", 0.0) > 1.0]
    best = max(faster, key=lambda each: each["ratio"], default={"tile": repr(own), "ratio": 1.0})
    told = {"tile": repr(own), "best": best["tile"], "ratio": best["ratio"]}
    return {**told, "tried": tried, "about": chosen.about}


def neighbours(tile: Any) -> Sequence[Any]:
    """Tiles of which one size is half or twice that of `tile`."""
    found = []
    for field in tile._fields:
        size = getattr(tile, field)
        for other in (size // 2, 2 * size):
            if other >= 1 and not (field == "warps" and other > max(size, _MOST_WARPS)):
                found.append(tile._replace(**{field: other}))
    return found


def _tried(stand: KernelStand, own: Any, other: Any) -> Figures:
    """How much faster than the table's own tile the other is, or why it cannot be had."""
    told: Figures = {"tile": repr(other)}
    try:
        share = stand.tolerance_share(partial(stand.subject.kernel, tile=other), is_kernel=True)
        if not share <= 1.0:  # NaN, too
            return told | {"reason": f"wrong by {share:.3g} tolerances"}
        return told | _against(stand, own, other)
    except Exception as error:  # of Triton's compiler, which has classes of its own: others are still wanted
        return told | {"reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def _against(stand: KernelStand, own: Any, other: Any) -> Figures:
    device = stand.where.device
    pace = replace(stand.pace, pairs=min(stand.pace.pairs, _PAIRS))
    ways: list[Way] = [partial(stand.subject.kernel, tile=tile) for tile in (own, other)]
    calls: list[Callable[[], object]] = [stand.work(way) for way in ways]
    with contextlib.ExitStack() as stack:
        if stand.launcher is not None:
            calls = [stack.enter_context(replayed(stand.work(way), stand.launcher, device)) for way in ways]
        first, second = map(Turn.of, calls)
        times = paired_ms(first, second, device, pace)
    return ratio_figures({side: [each / len(stand.sets) for each in ms] for side, ms in times.items()})
