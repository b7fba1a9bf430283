"""What torch.compile made, and which code each case runs: a line, and a table that opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_accel.ui.markup import Column, amount, apart, card, duration, empty, items, number, table, text

_COLUMNS = (
    Column("Block"),
    Column("Size"),
    Column("Runs"),
    Column("Next picture"),
    Column("Direct, ms", True),
    Column("Compiled, ms", True),
    Column("With kernels, ms", True),
    Column("Webui, ms", True),
    Column("Difference", True),
    Column("Reason"),
)


def graphs(status: Mapping[str, Any]) -> str:
    """Graphs in a line, and their cases in a table that is closed at first."""
    made = status.get("graphs") or {}
    cases = items(made, "cases")
    facts = "".join(f"<span>{fact}</span>" for fact in _facts(made))
    said = f'<p class="accel-facts">{facts}</p>' if facts else empty("nothing compiled")
    again = "".join(f"<li><span>{text(reason)}</span></li>" for reason in items(made, "reasons"))
    why = f'<ul class="accel-reasons">{again}</ul>' if again else ""
    return card("Compiled code", said + why + _details(cases))


def _facts(made: Mapping[str, Any]) -> list[str]:
    """What there is to tell of the graphs; nothing of what is nought."""
    if not any(amount(made.get(name)) for name in ("structures", "graphs", "pending")) and not made.get(
        "making"
    ):
        return []
    facts = [
        f"{number(made.get('graphs', 0))} graphs for {number(made.get('structures', 0))} structures",
        f"compiled in {duration(made.get('compile_s'))}",
    ]
    if amount(made.get("recompiles")):
        facts.append(f"{number(made['recompiles'])} recompiled")
    if amount(made.get("pending")):
        facts.append(f"{number(made['pending'])} to be compiled")
    if made.get("making"):
        facts.append(f"compiling {text(made['making'])}")
    return facts


def _details(cases: list[Any]) -> str:
    if not cases:
        return empty("no block was measured yet")
    rows = table(_COLUMNS, map(_row, cases), ident="accel_cases_table")
    head = f'<summary id="accel_cases_head"><span>Measured blocks</span> <b>{len(cases)}</b></summary>'
    return f'<details id="accel_cases">{head}{rows}</details>'


def _row(case: Mapping[str, Any]) -> tuple[str, ...]:
    ms = case.get("ms") or {}
    kind = " ".join(str(case.get(name, "")) for name in ("dtype", "device"))
    return (
        text(case.get("block", "")),
        f'{text(case.get("size", ""))} <span class="accel-quiet">{text(kind)}</span>',
        text(case.get("code", "")),
        text(case.get("next_code", "")),
        number(ms.get("direct"), 2),
        number(ms.get("compiled"), 2),
        number(ms.get("compiled with kernels"), 2),
        number(ms.get("host"), 2),
        apart(case.get("difference"), case.get("tolerance")),
        f'<span class="accel-why">{text(case.get("reason", ""))}</span>',
    )
