"""A mix of pictures after a warm-up: which of them has a graph made that was not there?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lib_accel.bench.comparison import relative_l2
from lib_accel.bench.graphs_choice import Backends, own_choice
from lib_accel.bench.graphs_models import place
from lib_accel.bench.graphs_subjects import Picture, Subject, subject
from lib_accel.graphs.compiler import inductor
from lib_accel.graphs.proof import COMPILED
from lib_accel.report import GraphReport

Figures = dict[str, Any]

# Of SD1.5 with a ControlNet: no more structures than this, and no more graphs of one.
MOST_STRUCTURES, MOST_GRAPHS = 24, 2


def warm_up_pictures(side: int) -> list[Picture]:
    """What is called before the counters are read: with guidance and without it, with a ControlNet."""
    both = Picture("warm-up", side, side, control=True)
    return [both, both._replace(batch=1)]


def mix(side: int, odd: tuple[int, int]) -> list[Picture]:
    """The pictures for which nothing may be compiled any more; `odd` is a size of latents."""
    plain = Picture("plain", side, side)
    wide, tall = (side, 2 * side), (side + 8, side)
    return [
        plain,
        plain._replace(name="LoRA", network=1.0),
        plain._replace(name="LoRA at half its weight", network=0.5),
        plain._replace(name="LoRA off"),
        plain._replace(name="ControlNet", control=True),
        plain._replace(name="ControlNet off"),
        plain._replace(name="prompt of 231 tokens", tokens=231),
        plain._replace(name="prompt of 77 tokens"),
        plain._replace(name="batch of 4", batch=4),
        plain._replace(name="CFG off, batch of 1", batch=1),
        plain._replace(name="wide", height=wide[0], width=wide[1]),
        plain._replace(name="tall", height=tall[0], width=tall[1]),
        plain._replace(name="odd size", height=odd[0], width=odd[1]),
        plain._replace(name="odd size, batch of 1", height=odd[0], width=odd[1], batch=1),
        plain._replace(name="another checkpoint", checkpoint=1),
        Picture("all at once", tall[0], tall[1], 4, 231, control=True, network=0.7, checkpoint=1),
    ]


def counters_of(
    package: str,
    width: str,
    *,
    backends: Backends = inductor,
    tell: Callable[[str], object] = lambda part: None,
) -> Figures:
    """Counters after a warm-up and after the mix, with compiled code asked for. Raises ImportError.

    Everything is compiled in this process, so that `compile_s` is all of it. `tell` hears of each picture.
    """
    where = place(width)
    choice = own_choice(backends)
    given = subject(package, width, where, choice)
    try:
        began = time.perf_counter()
        for picture in warm_up_pictures(where.side):
            tell(f"{package}, {picture.name}, batch of {picture.batch}")
            _shown(given, picture)
        warm_up_s, before = time.perf_counter() - began, given.report().graphs
        rows = [_row(given, picture, tell) for picture in mix(where.side, given.odd)]
        after = given.report().graphs
    finally:
        given.close()
    return {
        "width": width,
        "device": where.device.type,
        "structures": before.structures,
        "graphs_after_warmup": before.graphs,
        "graphs_after_mix": after.graphs,
        "recompiles": after.recompiles,
        "recompiles_in_mix": after.recompiles - before.recompiles,
        "reasons": list(after.reasons),
        "compile_s": before.compile_s,
        "warm_up_s": warm_up_s,
        "not_compiled": _not_compiled(after),
        "pictures": rows,
    }


def counters_or_reason(
    package: str,
    width: str,
    *,
    backends: Backends = inductor,
    tell: Callable[[str], object] = lambda part: None,
) -> Figures:
    """The counters, or why there are none as `left_out`."""
    try:
        return counters_of(package, width, backends=backends, tell=tell)
    except ImportError as error:
        return {"left_out": str(error)}


def _row(given: Subject, picture: Picture, tell: Callable[[str], object]) -> Figures:
    before = given.report().graphs
    result = _shown(given, picture)
    after, done = given.report().graphs, given.report().generation
    with given.as_stock():
        stock = given.call(picture)
    return {
        "picture": picture.name,
        "size": f"{picture.batch}x4x{picture.height}x{picture.width}",
        "new_graphs": after.graphs - before.graphs,
        "blocks": {"compiled": done.compiled, "direct": done.direct, "host": done.host},
        "rel_l2": relative_l2(result, stock),
    }


def _shown(given: Subject, picture: Picture) -> Tensor:
    """The picture as it comes when all that it asks for is made and proved."""
    given.call(picture)
    given.warm_up()
    for _ in range(2):  # the first proves what is new
        given.begin_generation()
        result = given.call(picture)
    return result


def _not_compiled(graphs: GraphReport) -> Mapping[str, int]:
    """Why cases run something else in the end."""
    return Counter(case.reason for case in graphs.cases if case.next_code != COMPILED)


def is_flat(figures: Mapping[str, Any]) -> bool:
    """Whether the mix made no graph, and no structure has more than there may be."""
    made = figures["graphs_after_mix"] - figures["graphs_after_warmup"]
    few = figures["graphs_after_mix"] <= MOST_GRAPHS * figures["structures"]
    return bool(made == 0 and few and figures["structures"] <= MOST_STRUCTURES)
