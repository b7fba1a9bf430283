"""Which implementation each operator takes, and how models lie in memory: a line, and a table that opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_accel.ui.markup import Column, amount, apart, card, duration, empty, fix, items, number, table, text

_PLAIN = "torch"  # what plain torch is called among implementations
_MOST_ROWS = 200  # in the page, which is made anew every two seconds
# What is said above the models; the fields of a model that say whether its weights lie so, and why; how they
# lie if not, and if so.
_WAYS = (
    (
        "Memory format of convolution weights",
        "is_channels_last",
        "reason",
        ("channels first", "channels last"),
    ),
    ("Weights of query, key and value", "is_packed", "packing_reason", ("apart", "packed")),
)
_COLUMNS = (
    Column("Operator"),
    Column("Size"),
    Column("Runs"),
    Column("Next picture"),
    Column("Torch, ms", True),
    Column("Best other, ms", True),
    Column("Difference", True),
    Column("Reason"),
)


def tuning(status: Mapping[str, Any]) -> str:
    """What was measured in a line, its cases in a table that is closed at first, and memory formats."""
    found = status.get("tuning") or {}
    cases = items(found, "cases")
    facts = "".join(f"<span>{fact}</span>" for fact in _facts(found, cases))
    said = f'<p class="accel-facts">{facts}</p>' if facts else ""
    body = said + _reasons(found, status) or empty(
        "nothing measured; only GPUs have other implementations than torch"
    )
    return card("Operators", body + _details(cases) + _formats(found, cases, status))


def _facts(found: Mapping[str, Any], cases: list[Any]) -> list[str]:
    """What there is to tell; of what is nought, only how many are faster."""
    if not cases and not amount(found.get("pending")):
        return []
    measured = sum(bool(case.get("ms")) for case in cases)
    faster = sum(_next(case) != _PLAIN for case in cases)
    facts = [f"{measured} measured", f"{faster} faster than {_PLAIN}"]
    if amount(found.get("seconds")):
        facts.append(f"measuring took {duration(found['seconds'])}")
    if amount(found.get("pending")):
        facts.append(f"{number(found['pending'])} to be measured")
    if found.get("holding"):
        facts.append(f"measuring {text(found['holding'])}")
    return facts


def _reasons(found: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Why nothing can be measured, and why attention is not as asked for, with what to do about it."""
    fault = found.get("fault")
    told = [(fault, fault)] if fault else []
    told += [(f"attention is not as asked for: {each}", each) for each in items(found, "refused")]
    lines = "".join(f"<li><span>{text(words)}</span>{_fix(reason, status)}</li>" for words, reason in told)
    return f'<ul class="accel-reasons">{lines}</ul>' if lines else ""


def _fix(reason: Any, status: Mapping[str, Any]) -> str:
    return fix((status.get("advice") or {}).get(reason))


def _details(cases: list[Any]) -> str:
    if not cases:
        return ""
    shown = sorted(cases, key=lambda case: -amount(_ms(case).get(_PLAIN)))[:_MOST_ROWS]
    rows = table(_COLUMNS, map(_row, shown), ident="accel_operators_table")
    head = f'<summary id="accel_operators_head"><span>Operators by size</span> <b>{len(cases)}</b></summary>'
    left = len(cases) - len(shown)
    rest = empty(f"{left} more, which take less time, are in the API's status") if left else ""
    return f'<details id="accel_operators">{head}{rows}{rest}</details>'


def _row(case: Mapping[str, Any]) -> tuple[str, ...]:
    ms = _ms(case)
    kind = " ".join(str(case.get(name, "")) for name in ("dtype", "device"))
    runs, follows = case.get("chosen", _PLAIN), _next(case)
    return (
        _long(case.get("operator", "")),
        _long(case.get("size", ""), f' <span class="accel-quiet">{text(kind)}</span>'),
        _long(runs),
        '<span class="accel-quiet">the same</span>' if follows == runs else _long(follows),
        number(ms.get(_PLAIN), 3),
        number(_best_other(ms, follows), 3),
        apart(case.get("difference"), case.get("tolerance")),
        f'<span class="accel-why">{text(case.get("reason", ""))}</span>',
    )


def _ms(case: Mapping[str, Any]) -> Mapping[str, Any]:
    return case.get("ms") or {}


def _next(case: Mapping[str, Any]) -> str:
    return str(case.get("next_chosen", _PLAIN))


def _best_other(ms: Mapping[str, Any], winner: str) -> Any:
    """The time of what is taken instead of plain torch, or else of what came nearest to that."""
    others = [value for name, value in ms.items() if name != _PLAIN]
    return ms.get(winner) if winner != _PLAIN else min(others, key=amount, default=None)


def _long(words: Any, more: str = "") -> str:
    """Words that break into lines where a column would be too wide; `more` is HTML."""
    return f'<span class="accel-long">{text(words)}{more}</span>'


def _formats(found: Mapping[str, Any], cases: list[Any], status: Mapping[str, Any]) -> str:
    """How the weights of each model lie, where there is a choice of it or somebody else has chosen."""
    shown = ""
    for title, is_so, reason, spoken in _WAYS:
        told = [each for each in items(found, "formats") if each.get(reason) and (cases or each.get(is_so))]
        lines = "".join(_format(each, spoken[bool(each.get(is_so))], each[reason], status) for each in told)
        shown += f'<p class="accel-note">{title}</p>{lines}' if lines else ""
    return shown


def _format(each: Mapping[str, Any], lies: str, reason: str, status: Mapping[str, Any]) -> str:
    why = f'<span class="accel-quiet">{text(reason)}</span>{_fix(reason, status)}'
    return f'<p class="accel-facts"><b>{text(each.get("model", ""))}</b><span>{lies}</span>{why}</p>'
