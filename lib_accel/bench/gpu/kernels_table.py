"""The kernels of the suite of GPUs as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lib_accel.bench.gpu.operators_shapes import ENOUGH
from lib_accel.bench.table import aligned

Figures = Mapping[str, Any]

KERNEL_REMARKS = (
    "kernels: against the plain torch of blocks, both replayed from a graph where `launched` says so; inputs "
    "are taken in turn from sets that no L2 cache holds together",
    "MiB at least: what goes in read once, what comes out written once; floor: the time of that many "
    "bytes, or of a product's arithmetic where that takes longer",
    "at most: bytes that plain torch's operations move, divided by those: the gain if only memory counted",
    "of tolerance: the largest error against float64, as a share of what the kernel's table allows",
    "predicted: the kernel's ms by lib_accel/kernels/predict.py, which no GPU has confirmed; own floor: by "
    "the figures at which this GPU is sold; both of GPUs in lib_accel/kernels/gpus.py only",
    "on a GPU plain torch returns an image of channels last with channels first; a copy back is not counted",
)


def kernels(rows: list[Figures]) -> str:
    """A line a kernel, shape and side, and whether anything stood in for a kernel."""
    headings = (
        "kernel",
        "side",
        "plain ms",
        "ms",
        "predicted",
        "ratio",
        "95 %",
        "at most",
        "MiB at least",
        "floor",
        "own floor",
        "launches",
        "of tolerance",
        "plain's",
    )
    return "\n".join([aligned(headings, [_kernel(row) for row in rows]), *_remarks(rows)])


def _kernel(row: Figures) -> list[str]:
    return [
        row["case"],
        row["side"],
        f"{row['stock_ms']:.3g}",
        f"{row['ms']:.3g}",
        _known(row.get("predicted_ms")),
        f"{row['ratio']:.2f}",
        f"{row['ratio_low95']:.2f}-{row['ratio_high95']:.2f}",
        f"{row['predicted_ratio']:.1f}",
        f"{row['least_bytes'] / 2**20:.3g}",
        f"{100 * row['floor_share']:.3g} %",
        _known(row.get("own_floor_share"), percent=True),
        f"{_count(row['plain_launches'])} to {_count(row['launches'])}",
        f"{row['tolerance_share']:.2f}",
        f"{row['plain_tolerance_share']:.2f}",
    ]


def _remarks(rows: list[Figures]) -> list[str]:
    stood_in = Counter(row["about"]["stands_in"] for row in rows if "stands_in" in row["about"])
    launched = Counter(row["launched"] for row in rows)
    inexact = [f"{row['case']}, {row['side']}" for row in rows if not row["tolerance_share"] <= 1.0]
    lines = [f"{count} rows: for the kernel stands {what}" for what, count in stood_in.items()]
    lines += [f"{count} rows launched {how}" for how, count in launched.items()]
    if inexact:
        lines.append(f"farther from float64 than the kernels' tables allow: {'; '.join(inexact)}")
    return lines


def tunings(rows: list[Figures]) -> str:
    """A line a shape, with the tile that it gets, and the best of those that were tried."""
    headings = ("kernel", "tile", "best", "ratio", "tried", "failed")
    lines = [
        [
            row["case"],
            row["tile"],
            "-" if row["best"] == row["tile"] else row["best"],
            f"{row['ratio']:.2f}",
            str(len(row["tried"])),
            str(sum("reason" in each for each in row["tried"])),
        ]
        for row in rows
        if row["tile"] is not None
    ]
    untried = len(rows) - len(lines)
    told = [aligned(headings, lines), _own(rows)] if lines else []
    return "\n".join([*told, *([f"{untried} shapes without a launch to tune"] if untried else [])])


def _own(rows: list[Figures]) -> str:
    """How often what is taken where nobody tunes is as good as what tuning finds, by kernel."""
    by_kernel: dict[str, list[bool]] = {}
    for row in rows:
        if row["tile"] is not None:
            by_kernel.setdefault(row["case"].split()[0], []).append(1 / row["ratio"] >= ENOUGH)
    parts = [f"{kernel} at {sum(each)} of {len(each)}" for kernel, each in by_kernel.items()]
    return f"the table's own tile has {100 * ENOUGH:.0f} % of the best one's speed: {', '.join(parts)} shapes"


def _known(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.3g} %" if percent else f"{value:.3g}"


def _count(launches: int | None) -> str:
    return "-" if launches is None else str(launches)
