"""The demo's figures as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

from lib_accel.bench.table import aligned
from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.cases import Outcome

HEADINGS = (
    "case",
    "stock ms/step",
    "ours ms/step",
    "ratio",
    "picture difference",
    "blocks direct/host",
    "LoRA switch ms, stock/ours",
)


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each case; the pictures' difference is the largest of any channel."""
    return aligned(HEADINGS, [row(outcome) for outcome in outcomes])


def row(outcome: Outcome) -> list[str]:
    """A case as texts for the columns of HEADINGS."""
    figures, speeds, switch = outcome.figures, outcome.blocks["by_speed"], outcome.switch_ms
    return [
        outcome.case.name,
        f"{figures.stock_ms:.1f}",
        f"{figures.accelerated_ms:.1f}",
        f"{figures.ratio:.2f}x",
        f"{outcome.difference[0]}/255",
        f"{speeds['direct'] + speeds['compiled']}/{speeds['host']}",
        f"{switch[STOCK]:.0f}/{switch[ACCELERATED]:.0f}" if outcome.case.loras else "-",
    ]
