"""Ways to run a UNet against stock: seconds to compile, graphs, milliseconds, difference of the results."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from lib_accel.bench.comparison import relative_l2
from lib_accel.bench.graphs_models import WIDTHS, diffusers_unet, place
from lib_accel.bench.graphs_rivals import (
    OURS_AUTO,
    OURS_DIRECT,
    RIVALS,
    Given,
    Makers,
    Rival,
    call_of,
    inputs,
    rival,
)
from lib_accel.bench.stats import paired
from lib_accel.bench.timing import ACCELERATED, STOCK, Clock, Run, in_turn

Figures = dict[str, Any]


def compared(
    width: str,
    *,
    pairs: int,
    steps: int,
    is_cold: bool,
    makers: Makers = Makers(),  # noqa: B008 - a frozen value
    tell: Callable[[str], object] = lambda part: None,
    keep: Callable[[Figures], object] = lambda figures: None,
) -> Figures:
    """A row for each way to run the UNet of diffusers at that width, each timed in turn with stock.

    is_cold: each way compiles without anything that was compiled before, else with the user's own cache.
    tell, keep: hear of each way as it begins, and get the figures as they are after it.
    """
    where = place(width)
    stock = diffusers_unet(width, where)
    given = inputs(where, WIDTHS[width].context, height=where.side, width=where.side)
    other = inputs(where, WIDTHS[width].context, height=where.side, width=where.side + 8)
    ways: dict[str, Figures] = {}
    figures: Figures = {
        "device": where.device.type,
        "dtype": str(where.dtype).removeprefix("torch."),
        "input": "x".join(map(str, given[0].shape)),
        "other_input": "x".join(map(str, other[0].shape)),
        "weights": sum(each.numel() for each in stock.parameters()),
        "ways": ways,
    }
    for name in RIVALS:
        tell(f"{width}: {name}")
        if name == OURS_AUTO:
            ways[name] = {"same_as": OURS_DIRECT}  # on every device, so far
        else:
            with _cache(is_cold=is_cold):
                one = rival(name, stock, makers)
                ways[name] = _row(one, stock, (given, other), pairs=pairs, steps=steps)
        keep(figures)
    return figures


def _row(one: Rival, stock: Any, given: tuple[Given, Given], *, pairs: int, steps: int) -> Figures:
    usual, other = given
    before = _graphs()
    compile_s = one.prepare(usual)
    made = _graphs() - before
    with one.turn() as call:
        result = call(usual)
        blocks = one.blocks()
    expected = call_of(stock)(usual)
    runs = in_turn(
        {
            STOCK: functools.partial(_timed_stock, stock, usual, steps),
            ACCELERATED: functools.partial(_timed, one, usual, steps),
        },
        pairs,
    )
    figures = paired(*([run.step_ms for run in runs[side]] for side in (STOCK, ACCELERATED)))
    return {
        "compile_s": compile_s,
        "graphs": made,
        "recompiles": _recompiles(one, other),
        **asdict(figures),
        "rel_l2": relative_l2(result, expected),
        "blocks": dict(blocks),
    }


def _recompiles(one: Rival, other: Given) -> int:
    """Graphs that a change of the size costs; one that would take minutes is counted and not made."""
    import torch._dynamo

    before = _graphs()
    try:
        one.meet(other)
    except torch._dynamo.exc.RecompileError:
        return 1
    return _graphs() - before


def _graphs() -> int:
    """Graphs that torch has made in this process, by its own count."""
    import torch._dynamo.utils

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _timed(one: Rival, given: Given, steps: int) -> Run:
    with one.turn() as call:
        return _run(call, given, steps)


def _timed_stock(stock: Any, given: Given, steps: int) -> Run:
    return _run(call_of(stock), given, steps)


def _run(call: Callable[[Given], Any], given: Given, steps: int) -> Run:
    clock = Clock(given[0].device)
    for _ in range(steps):
        call(given)
        clock.tick()
    return clock.run()


@contextlib.contextmanager
def _cache(*, is_cold: bool) -> Iterator[None]:
    """Nothing compiled before is known inside the block: to this process, and if cold on disk neither."""
    import torch._dynamo
    from torch._inductor import utils

    torch._dynamo.reset()
    fresh: Any = getattr(utils, "fresh_cache", None) or getattr(utils, "fresh_inductor_cache")  # noqa: B009
    with fresh() if is_cold else contextlib.nullcontext():
        yield
