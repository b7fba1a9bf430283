"""From which size on are pieces worth it? Ours in pieces against ours as a whole, and what both hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lib_accel.bench.comparison import relative_l2
from lib_accel.bench.cuts import WHOLE, cut_by
from lib_accel.bench.gpu.parts import DIRECT
from lib_accel.bench.gpu.rows import Figures, Stand, placed
from lib_accel.bench.gpu.sides import Call, Side
from lib_accel.bench.gpu.timing import Turn, paired_ms, ratio_figures
from lib_accel.bench.peaks import Peak, peak
from lib_accel.bench.table import aligned
from lib_accel.blocks.pieces import SCARCE
from lib_accel.blocks.rules import Pieces

_MIB = 2**20

# By the name of the side: from which size on intermediates are cut, into pieces of which size.
CUTS: Mapping[str, Pieces] = MappingProxyType(
    {
        "from 64 MiB": Pieces(64 * _MIB, 32 * _MIB),
        "from 256 MiB": Pieces(256 * _MIB, 32 * _MIB),
        "as where memory ran out": SCARCE,
    }
)

_TOYS = Pieces(0, 2**12)  # for toys, in which nothing is large

PIECES_REMARKS = (
    "pieces: ratio is the time as a whole divided by that in pieces; MiB are allocated (reserved) at most",
)


def pieces_row(stand: Stand, name: str) -> Figures:
    """Times in the order A B B A of direct code as a whole and cut so, and the peaks of both and of stock."""
    stage, device = stand.stage, stand.stage.where.device
    cut = _TOYS if stage.where.is_toy else CUTS[name]
    with placed(DIRECT, stand) as one:
        one.prepare()
        whole, cut_up = (Turn(lambda by=by: _turn(one, by), one.settle) for by in (WHOLE, cut))  # type: ignore[misc]
        results: dict[str, Tensor] = {}
        peaks: dict[str, Peak] = {}
        for what, turn in (("whole", whole), ("pieces", cut_up)):
            with turn.place() as call:
                results[what] = call().clone()
                peaks[what] = peak(call, device)
        with one.away():
            peaks["stock"] = peak(stage.call, device)
        speed = ratio_figures(paired_ms(whole, cut_up, device, stand.pace))
    speed["whole_ms"] = speed.pop("stock_ms")  # as the first of a pair is named
    return {
        **speed,
        "whole_bytes": cut.whole_bytes,
        "piece_bytes": cut.piece_bytes,
        "peak_mib": {what: each._asdict() for what, each in peaks.items()},
        "rel_l2": relative_l2(results["pieces"], results["whole"]),
    }


@contextlib.contextmanager
def _turn(one: Side, by: Pieces) -> Iterator[Call]:
    with cut_by(by), one.turn() as call:
        yield call


def pieces_table(rows: list[Mapping[str, Any]]) -> str:
    """A line each row."""
    headings = ("case", "side", "whole ms", "ms", "ratio", "95 %", "stock MiB", "whole MiB", "MiB", "rel-L2")
    return aligned(headings, [_line(row) for row in rows])


def _line(row: Mapping[str, Any]) -> list[str]:
    return [
        row["case"],
        row["side"],
        f"{row['whole_ms']:.4g}",
        f"{row['ms']:.4g}",
        f"{row['ratio']:.3f}",
        f"{row['ratio_low95']:.3f}-{row['ratio_high95']:.3f}",
        *(_peak(row["peak_mib"][what]) for what in ("stock", "whole", "pieces")),
        f"{row['rel_l2']:.1e}",
    ]


def _peak(told: Mapping[str, float | None]) -> str:
    reserved = told["reserved"]
    return f"{told['allocated']:.0f}" + ("" if reserved is None else f" ({reserved:.0f})")
