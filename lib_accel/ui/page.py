"""The tab's live page: from the status to HTML, one string for each part that is renewed by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from lib_accel.options import Options
from lib_accel.ui.benchmark import benchmark
from lib_accel.ui.graphs import graphs
from lib_accel.ui.launches import launches
from lib_accel.ui.markup import Column, amount, card, empty, items, number, percent, progress, table, text
from lib_accel.ui.models import control_models, models, networks
from lib_accel.ui.pictures import pictures
from lib_accel.ui.task import task
from lib_accel.ui.tuning import tuning

# Where the badge and the reasons below it say all that the summary would.
_OWN_CODE = {
    "off": "the webui draws pictures with its own code",
    "aside": "the webui draws pictures with its own code, because of this:",
}


class Page(NamedTuple):
    """The parts of the page as HTML."""

    headline: str
    models: str
    task: str
    memory: str
    pictures: str
    benchmark: str
    launches: str
    graphs: str
    tuning: str
    settings: str


def page(status: Mapping[str, Any]) -> Page:
    """All parts of the page; an empty status says that there is none."""
    return Page(
        headline=headline(status),
        models=models(status) + f'<div class="accel-pair">{networks(status)}{control_models(status)}</div>',
        task=task(status),
        memory=memory(status),
        pictures=pictures(status),
        benchmark=benchmark(status),
        launches=launches(status),
        graphs=graphs(status),
        tuning=tuning(status),
        settings=settings_in_force(status),
    )


def headline(status: Mapping[str, Any]) -> str:
    """On, off or standing aside, the summary, and every reason to stand aside with what to do about it."""
    style, badge = _badge(status)
    summary = _OWN_CODE.get(style, str(status.get("summary") or "see the log"))
    version = status.get("version")
    number_of_version = f'<span class="accel-note">{text(version)}</span>' if version else ""
    advice = status.get("advice") or {}
    lines = "".join(
        f'<li><span>{text(reason)}</span><span class="accel-fix">{text(advice.get(reason, ""))}</span></li>'
        for reason in items(status, "stand_aside")
    )
    return (
        f'<div class="accel-headline"><span class="accel-badge accel-{style}">{badge}</span>'
        f'<span class="accel-summary">{text(summary)}</span>{number_of_version}</div>'
        + (f'<ul class="accel-reasons">{lines}</ul>' if lines else "")
    )


def _badge(status: Mapping[str, Any]) -> tuple[str, str]:
    if not status:
        return "unknown", "no status"
    if not status.get("enabled"):
        return "off", "off"
    return ("aside", "standing aside") if items(status, "stand_aside") else ("on", "on")


def memory(status: Mapping[str, Any]) -> str:
    """What the extension holds in memory, each against its limit, and what it keeps on disk."""
    rows = "".join(_held(each) for each in items(status, "memory"))
    held = f'<div class="accel-meters">{rows}</div>' if rows else empty("nothing is held")
    return card("Memory and disk", held + _cache(status.get("cache") or {}))


def _held(each: Mapping[str, Any]) -> str:
    what, mib, limit = each.get("what", ""), each.get("mib"), each.get("limit_mib")
    if limit is None:
        return _line(text(what), "", f"{number(mib, 1)} MiB")
    bar = progress(percent(mib, limit) / 100, f"{what}, of its limit")
    return _line(text(what), bar, f"{number(mib, 1)} of {number(limit)} MiB")


def _line(name: str, bar: str, said: str) -> str:
    return (
        f'<div class="accel-model"><span class="accel-name">{name}</span>{bar}'
        f'<span class="accel-said">{said}</span></div>'
    )


def _cache(cache: Mapping[str, Any]) -> str:
    if not cache:
        return empty("no choice is kept on disk")
    size = f"{number(cache.get('choices', 0))} choices, {number(amount(cache.get('mib')), 1)} MiB"
    folder = f"<code>{text(cache.get('folder', ''))}</code>"
    return f'<p class="accel-facts"><b>Choices on disk</b><span>{size}</span><span>{folder}</span></p>'


def settings_in_force(status: Mapping[str, Any]) -> str:
    """The options as they count now, in a table that is closed at first."""
    options = status.get("options") or {}
    if not options:
        return ""
    labels = {option.name: option.metadata["label"] for option in fields(Options)}
    rows = [(text(labels.get(name, name)), _said(value)) for name, value in options.items()]
    columns = (Column("Setting"), Column("Value"))
    head = '<summary id="accel_options_head">Settings in force</summary>'
    rest = table(columns, rows, ident="accel_options_table")
    return f'<section class="accel-card"><details id="accel_options">{head}{rest}</details></section>'


def _said(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else text(value)
