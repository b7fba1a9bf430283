"""The speed of each side of each case as a picture, against eager SDPA, with the floor marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lib_accel.bench.gpu import parts
from lib_accel.bench.gpu.file import DONE
from lib_accel.bench.gpu.table import machine_line

_INK, _GREY, _LINES, _FLOOR = "#1f2328", "#59636e", "#d8dee4", "#b3541e"
_OURS, _OTHERS, _STOCK = "#0a5bc4", "#6e7781", "#c4ccd4"
_WIDTH_IN, _BAR_IN, _TOP_IN, _BOTTOM_IN, _DPI = 9.5, 0.26, 0.95, 0.5, 110
_LEFT, _RIGHT = 0.36, 0.96
_FARTHEST = 12.0  # times stock's speed; floors beyond are told in words


def save_plot(figures: Mapping[str, Any], file: Path) -> bool:
    """Writes the picture, its format that of the file's name; False if no row has a speed yet."""
    drawn = figure(figures)
    if drawn is None:
        return False
    drawn.savefig(file)
    return True


def figure(figures: Mapping[str, Any]) -> Figure | None:
    """A bar a side, its length how many times as fast as eager SDPA it is; None without any row."""
    cases = _by_case(figures)
    bars = sum(len(rows) + 1 for rows in cases.values())
    if not bars:
        return None
    about = figures["environment"]
    height = _TOP_IN + _BOTTOM_IN + bars * _BAR_IN
    drawn = Figure(figsize=(_WIDTH_IN, height), dpi=_DPI, facecolor="white")
    drawn.text(
        0.02, 1 - 0.33 / height, "Calls a second, eager SDPA = 1", color=_INK, fontsize=13, weight="bold"
    )
    drawn.text(
        0.02,
        1 - 0.6 / height,
        f"{machine_line(about)}; floors: {about['floors']['gpu']}",
        color=_GREY,
        fontsize=8.5,
    )
    top, bottom = 1 - _TOP_IN / height, _BOTTOM_IN / height
    axes: Any = drawn.add_axes((_LEFT, bottom, _RIGHT - _LEFT, top - bottom))
    _draw(axes, cases, bars)
    return drawn


def _by_case(figures: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    cases: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in figures["rows"].values():
        if row["status"] == DONE and row["kind"] == parts.SPEED:
            cases.setdefault((row["part"], row["case"]), []).append(row)
    return cases


def _draw(axes: Any, cases: Mapping[tuple[str, str], list[Mapping[str, Any]]], bars: int) -> None:
    ratios = [row["ratio"] for rows in cases.values() for row in rows]
    floors = [row["stock_ms"] / row["floor_ms"] for rows in cases.values() for row in rows if row["floor_ms"]]
    end = min(max([*ratios, *(each for each in floors if each <= _FARTHEST)]) * 1.12, 1.2 * _FARTHEST)
    axes.set_xlim(0, max(end, *ratios))
    axes.set_ylim(bars, -0.6)
    ticks: dict[float, str] = {}
    at = 0.0
    for (part, case), rows in cases.items():
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(0, at, f"{part}: {case}", color=_INK, fontsize=9, weight="bold", va="center", bbox=clear)
        begin = at
        for row in rows:
            at += 1
            _bar(axes, at, row)
            ticks[at] = row["side"]
        _mark_floor(axes, rows, begin + 0.5, at + 0.5)
        at += 1
    axes.axvline(1.0, color=_GREY, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(colors=_GREY, labelsize=8.5, length=0, pad=6)
    axes.grid(axis="x", color=_LINES, linewidth=0.8)
    axes.set_axisbelow(True)
    for edge in axes.spines.values():
        edge.set_visible(False)


def _bar(axes: Any, at: float, row: Mapping[str, Any]) -> None:
    side = row["side"]
    color = _STOCK if side == parts.STOCK else _OURS if side.startswith("ours") else _OTHERS
    axes.barh(at, row["ratio"], height=0.72, color=color)
    text = f"{row['ratio']:.2f}x  {row['calls_per_s']:.3g}/s"
    inside = row["ratio"] > 0.75 * axes.get_xlim()[1]
    axes.annotate(
        text,
        (row["ratio"], at),
        xytext=(-4 if inside else 4, 0),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="center",
        color="white" if inside and color != _STOCK else _INK,
        fontsize=8,
    )


def _mark_floor(axes: Any, rows: list[Mapping[str, Any]], begin: float, end: float) -> None:
    """A line where the floor is, or how far away it is; by the case's own stock."""
    stock_ms = next((row["ms"] for row in rows if row["side"] == parts.STOCK), rows[0]["stock_ms"])
    floor = stock_ms / rows[0]["floor_ms"] if rows[0]["floor_ms"] else None
    if floor is None:
        return
    right = axes.get_xlim()[1]
    if floor <= right:
        axes.plot([floor, floor], [begin, end], color=_FLOOR, linewidth=2)
        axes.annotate(
            "floor",
            (floor, begin),
            xytext=(0, 1),
            textcoords="offset points",
            ha="center",
            color=_FLOOR,
            fontsize=8,
        )
    else:
        axes.text(right, begin, f"floor at {floor:.3g}x ▸", ha="right", va="bottom", color=_FLOOR, fontsize=8)
