"""Configurations near those of kernels/configs.py, timed against them, to correct the tables by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from lib_accel.bench.gpu.kernels_rows import Figures, KernelStand, chosen_way, replayed
from lib_accel.bench.gpu.parts import KERNEL
from lib_accel.bench.gpu.timing import Turn, paired_ms, ratio_figures
from lib_accel.kernels import configs

_PAIRS = 5
_MOST_WARPS = 16


class Picked(NamedTuple):
    """What a launch took from a table of configs.py."""

    table: str
    entry: Any


def tuning_row(stand: KernelStand, name: str) -> Figures:
    """For each entry that a launch takes: its neighbours, by how much each is faster, and the best one.

    In a dry run without Triton there is no launch, and so no entry.
    """
    chosen = chosen_way(stand, KERNEL)
    picks = [] if chosen.about else picked(stand.once(chosen.way))
    return {"tables": [_tuned(stand, pick) for pick in picks], "about": chosen.about}


def picked(call: Callable[[], object]) -> list[Picked]:
    """The entries that the call takes, in its order, each once."""
    names = {id(value): name for name, value in vars(configs).items() if isinstance(value, tuple)}
    taken: dict[Picked, None] = {}
    pick = configs.pick

    def noting(table: Any, size: int) -> Any:
        entry = pick(table, size)
        taken[Picked(names[id(table)], entry)] = None
        return entry

    with _set("pick", noting):
        call()
    return list(taken)


@contextlib.contextmanager
def trying(pick: Picked, entry: Any) -> Iterator[None]:
    """`entry` in the place of the one that was picked, for the block."""
    table = getattr(configs, pick.table)
    with _set(pick.table, tuple(entry if each is pick.entry else each for each in table)):
        yield


def neighbours(entry: Any) -> list[Any]:
    """Entries of which one size is half or twice that of `entry`."""
    found = []
    for field in entry._fields:
        size = getattr(entry, field)
        if field == "up_to":
            continue
        for other in (size // 2, 2 * size):
            if other >= 1 and not (field == "warps" and other > _MOST_WARPS):
                found.append(entry._replace(**{field: other}))
    return found


def _tuned(stand: KernelStand, pick: Picked) -> Figures:
    tried = [_tried(stand, pick, entry) for entry in neighbours(pick.entry)]
    # Below 1 in the whole interval is noise or worse: the table's own entry stays the best then.
    faster = [each for each in tried if each.get("ratio_low95", 0.0) > 1.0]
    best = max(faster, key=lambda each: each["ratio"], default=None)
    return {
        "table": pick.table,
        "entry": repr(pick.entry),
        "best": best["entry"] if best else repr(pick.entry),
        "ratio": best["ratio"] if best else 1.0,
        "tried": tried,
    }


def _tried(stand: KernelStand, pick: Picked, entry: Any) -> Figures:
    """How much faster than the table's entry this one is, or why it cannot be had."""
    told: Figures = {"entry": repr(entry)}
    try:
        with trying(pick, entry):
            share = stand.tolerance_share(stand.subject.kernel)
        if not share <= 1.0:  # NaN, too
            return told | {"reason": f"wrong by {share:.3g} tolerances"}
        return told | _against_tables(stand, pick, entry)
    except Exception as error:  # of Triton's compiler, which has classes of its own: others are still wanted
        return told | {"reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def _against_tables(stand: KernelStand, pick: Picked, entry: Any) -> Figures:
    work, device = stand.work(stand.subject.kernel), stand.where.device
    pace = replace(stand.pace, pairs=min(stand.pace.pairs, _PAIRS))
    with contextlib.ExitStack() as stack:

        def turn(other: Any) -> Turn:
            call: Callable[[], object] = work
            if stand.launcher is not None:
                with trying(pick, other):
                    call = stack.enter_context(replayed(work, stand.launcher, device))

            @contextlib.contextmanager
            def place() -> Iterator[Callable[[], Any]]:
                with trying(pick, other):
                    yield call

            return Turn(place)

        times = paired_ms(turn(pick.entry), turn(entry), device, pace)
    return ratio_figures({side: [each / len(stand.sets) for each in ms] for side, ms in times.items()})


@contextlib.contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    before = getattr(configs, name)
    setattr(configs, name, value)
    try:
        yield
    finally:
        setattr(configs, name, before)
