"""Shows rows: as a table, as a block to copy, as JSON. None of them says whose machine it is."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from lib_accel import __version__
from lib_accel.doctor.checks import is_enough
from lib_accel.doctor.privacy import Private
from lib_accel.doctor.verdict import Row, Verdict

_REPORT_WIDTH = 100


def without_private_words(rows: Sequence[Row], private: Private) -> list[Row]:
    """The rows in words that may be shown to anybody."""
    return [
        Row(
            row.what,
            Verdict(row.verdict.status, private.hide(row.verdict.finding), private.hide(row.verdict.fix)),
        )
        for row in rows
    ]


def as_table(rows: Sequence[Row], width: int) -> str:
    """Status, subject and finding of each row, what to do below it, in lines of at most `width`."""
    lines = [f"sd-webui-accel {__version__}", ""]
    column = max((len(row.what) for row in rows), default=0)
    for row in rows:
        lines += _lines(f"{row.verdict.status:<8} {row.what:<{column}}  ", row.verdict.finding, width)
        if row.verdict.fix:
            lines += _lines(" " * (column + 11) + "-> ", row.verdict.fix, width)
    return "\n".join([*lines, "", conclusion(rows)])


def as_report(rows: Sequence[Row]) -> str:
    """The table as a block that can be pasted into an issue."""
    # A finding may hold what would end the block early.
    return "```text\n" + as_table(rows, _REPORT_WIDTH).replace("```", "'''") + "\n```"


def as_json(rows: Sequence[Row]) -> str:
    """The table as data."""
    data = {
        "version": __version__,
        "works": is_enough(rows),
        "rows": [{"what": row.what} | vars(row.verdict) for row in rows],
    }
    return json.dumps(data, indent=2)


def conclusion(rows: Sequence[Row]) -> str:
    """One line: whether we can be used here."""
    if is_enough(rows):
        return "Ready: direct code works here."
    return "Not ready: direct code does not work here, see the rows with 'no' above."


def _lines(start: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text or "-",
        max(width, len(start) + 30),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
