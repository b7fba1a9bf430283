"""Pieces of HTML that the tab's page is made of; whatever comes from outside is escaped here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """The head of a table's column; numbers stand at its right end."""

    title: str
    is_number: bool = False


def text(value: object) -> str:
    """`value` as HTML that shows just what it says."""
    return html.escape(str(value))


def amount(value: Any) -> float:
    """`value` as a finite number, 0 if it is none."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else 0.0


def number(value: Any, digits: int = 0) -> str:
    """`value` with so many digits after the point; a dash for None, and what is no number as it is."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    return f"{value:.{digits}f}"


def apart(difference: Any, allowed: Any) -> str:
    """By how much two results differ, of how much is allowed; a dash for None."""
    if difference is None:
        return number(None)
    limit = "" if allowed is None else f' <span class="accel-quiet">of {_power(allowed)}</span>'
    return _power(difference) + limit


def _power(value: Any) -> str:
    return f"{value:.0e}" if isinstance(value, float) else number(value)


def duration(seconds: Any) -> str:
    """Seconds in the words that people use: "12 s", "2 min 05 s"."""
    whole = round(amount(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"


def percent(part: Any, whole: Any) -> float:
    """`part` of `whole` in percent, from 0 to 100; 0 of nothing is 0."""
    return min(100.0, max(0.0, 100 * amount(part) / amount(whole))) if amount(whole) > 0 else 0.0


def items(status: Mapping[str, Any], name: str) -> list[Any]:
    """The list of this name, empty if the status has none."""
    return list(status.get(name) or ())


def card(title: str, body: str, *, note: str = "") -> str:
    """A titled part of the page; `note` stands at the end of the title's line. Both are plain text."""
    aside = f'<span class="accel-note">{text(note)}</span>' if note else ""
    head = f"<header><h3>{text(title)}</h3>{aside}</header>"
    return f'<section class="accel-card" aria-label="{text(title)}">{head}{body}</section>'


def empty(words: str) -> str:
    """What stands where there is nothing to show yet."""
    return f'<p class="accel-empty">{text(words)}</p>'


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, ident: str) -> str:
    """A table of cells that are HTML already; it scrolls sideways where the window is narrow.

    ident: its id, by which the page keeps its place when new rows come.
    """
    kinds = [' class="accel-number"' if column.is_number else "" for column in columns]
    head = "".join(
        f"<th{kind}>{text(column.title)}</th>" for kind, column in zip(kinds, columns, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="accel-scroll" id="{text(ident)}"><table class="accel-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def progress(done: Any, label: str) -> str:
    """A bar that is filled from 0 to 1; `label` is what a screen reader calls it."""
    share = percent(done, 1)
    fill = f'<i class="accel-fill" style="width:{share:.1f}%"></i>'
    return (
        f'<div class="accel-bar" role="progressbar" aria-label="{text(label)}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share:.0f}">{fill}</div>'
    )


def proportions(parts: Sequence[tuple[str, Any]], label: str) -> str:
    """A bar of segments of (style, size), as wide as their share of all; `label` tells the same in words."""
    whole = sum(amount(size) for _, size in parts)
    segments = "".join(
        f'<i class="accel-{text(style)}" style="width:{percent(size, whole):.1f}%"></i>'
        for style, size in parts
        if amount(size) > 0
    )
    return f'<div class="accel-bar" role="img" aria-label="{text(label)}">{segments}</div>'


def reasons(counted: Mapping[str, Any], advice: Mapping[str, Any]) -> str:
    """Why blocks are slow, most frequent first, each with what to do about it where that is known."""
    ordered = sorted(counted.items(), key=lambda each: -amount(each[1]))
    lines = "".join(
        f'<li><b class="accel-count">{number(count)}</b> <span>{text(reason)}</span>'
        f"{fix(advice.get(reason))}</li>"
        for reason, count in ordered
    )
    return f'<ul class="accel-reasons">{lines}</ul>' if lines else ""


def fix(what_to_do: Any) -> str:
    """What to do about a reason, on a line of its own; nothing if that is not known."""
    return f'<span class="accel-fix">{text(what_to_do)}</span>' if what_to_do else ""
