"""What a step costs with stock and with ours, over the number of LoRAs: chart and table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_accel.ui.chart import Line, line_chart
from lib_accel.ui.markup import Column, amount, card, empty, items, number, table

_COLUMNS = (
    Column("LoRAs"),
    Column("Stock, ms", True),
    Column("Accel, ms", True),
    Column("Ratio", True),
    Column("95 % interval", True),
)
_LEGEND = (
    '<p class="accel-legend"><span><i class="accel-stock"></i>stock</span>'
    '<span><i class="accel-direct"></i>Accel</span></p>'
)


def benchmark(status: Mapping[str, Any]) -> str:
    """The latest benchmark, or what one would tell; it never begins by itself."""
    done = status.get("benchmark") or {}
    rows = items(done, "rows")
    if not rows:
        return card("Benchmark", empty("no benchmark yet: it runs only when you press the button"))
    lines = [
        Line("stock", "stock", [(amount(row.get("loras")), amount(row.get("stock_ms"))) for row in rows]),
        Line("ours", "Accel", [(amount(row.get("loras")), amount(row.get("ours_ms"))) for row in rows]),
    ]
    chart = line_chart(lines, x_title="number of LoRAs", y_title="ms per step")
    figures = table(_COLUMNS, map(_row, rows), ident="accel_benchmark_table")
    size = f"{number(done.get('width'))} x {number(done.get('height'))}"
    note = f"{size}, {number(done.get('steps'))} steps, {done.get('device', '')}"
    body = f'<div class="accel-columns"><figure>{chart}{_LEGEND}</figure>{figures}</div>'
    return card("Benchmark", body, note=note)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        number(row.get("loras")),
        number(row.get("stock_ms"), 1),
        number(row.get("ours_ms"), 1),
        f"<b>{number(row.get('ratio'), 2)}x</b>",
        _interval(row),
    )


def _interval(row: Mapping[str, Any]) -> str:
    if row.get("low") is None or row.get("high") is None:
        return number(None)
    return f'<span class="accel-quiet">{number(row["low"], 2)} to {number(row["high"], 2)}</span>'
