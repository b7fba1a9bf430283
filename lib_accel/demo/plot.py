"""The time of a step against the number of LoRAs, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.grid import SMALL, fitting, time_text
from lib_accel.demo.growth import Point, slope_ms

_SIZE_PX, _DPI = (900, 500), 100
_AXES = (0.085, 0.115, 0.69, 0.69)  # left, bottom, width, height, as shares of the picture
_INK, _GREY, _LINES = "#1f2328", "#59636e", "#d8dee4"
_COLORS = {STOCK: "#b3541e", ACCELERATED: "#0a5bc4"}
_NAMES = {STOCK: "diffusers + peft", ACCELERATED: "accelerated"}
_HEADROOM = 1.12
_FIRST_LABEL_PX = 18  # height of the label where a line begins, with room between two of them
_LAST_LABEL_PX = 62  # and of the three lines where it ends


def plot(points: Sequence[Point], *, title: str, remarks: Sequence[str]) -> Image.Image:
    """Both sides' lines from 0 LoRAs on, RGB; times start at 0, so that lengths compare as times do.

    remarks: two lines below the title.
    """
    buffer = io.BytesIO()
    figure(points, title=title, remarks=remarks).savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def figure(points: Sequence[Point], *, title: str, remarks: Sequence[str]) -> Figure:
    """What `plot` draws, before it is pixels."""
    drawn = Figure(figsize=(_SIZE_PX[0] / _DPI, _SIZE_PX[1] / _DPI), dpi=_DPI, facecolor="white")
    drawn.text(0.02, 0.945, title, color=_INK, fontsize=13, fontweight="bold")
    for number, remark in enumerate(remarks):
        text = fitting(remark, SMALL.font(), round(0.96 * _SIZE_PX[0]))
        drawn.text(0.02, 0.9 - 0.036 * number, text, color=_GREY, fontsize=8.5)
    axes = drawn.add_axes(_AXES)
    _frame(axes, points)
    for side in _NAMES:
        _line(axes, points, side)
    return drawn


def times_ms(points: Sequence[Point], side: str) -> list[float]:
    """That side's times of a step."""
    figures = [point.figures for point in points]
    return [each.stock_ms if side == STOCK else each.accelerated_ms for each in figures]


def label_shifts_px(points: Sequence[Point], *, index: int, height_px: float) -> dict[str, float]:
    """How far each side's label stands above its point, so that labels of that height do not overlap.

    index: which of the points the labels are for, 0 or -1.
    """
    to_px = _SIZE_PX[1] * _AXES[3] / _top_ms(points)
    heights = {side: to_px * times_ms(points, side)[index] for side in _NAMES}
    upper, lower = sorted(_NAMES, key=lambda side: -heights[side])
    push = max(0.0, height_px - (heights[upper] - heights[lower])) / 2
    return {upper: push, lower: -push}


def _line(axes: Any, points: Sequence[Point], side: str) -> None:
    times, counts = times_ms(points, side), [point.loras for point in points]
    axes.plot(counts, times, color=_COLORS[side], linewidth=2.2, marker="o", markersize=5.5, clip_on=False)
    text = {"textcoords": "offset pixels", "color": _COLORS[side], "fontsize": 10, "va": "center"}
    start_px = label_shifts_px(points, index=0, height_px=_FIRST_LABEL_PX)[side]
    axes.annotate(time_text(times[0]), (counts[0], times[0]), (-13, start_px), ha="right", **text)
    end, end_px = (counts[-1], times[-1]), label_shifts_px(points, index=-1, height_px=_LAST_LABEL_PX)[side]
    growth = round(slope_ms(points, side), 1) + 0.0  # never "-0.0"
    lines = f"{time_text(times[-1])}\n{growth:+.1f} ms each LoRA"
    axes.annotate(_NAMES[side], end, (16, end_px + 18), fontweight="bold", **text)
    axes.annotate(lines, end, (16, end_px - 9), linespacing=1.25, **text)


def _top_ms(points: Sequence[Point]) -> float:
    return _HEADROOM * max(time for side in _NAMES for time in times_ms(points, side))


def _frame(axes: Any, points: Sequence[Point]) -> None:
    counts = [point.loras for point in points]
    axes.set_ylim(0, _top_ms(points))
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= _top_ms(points)])
    axes.set_xlim(-0.13 * counts[-1], counts[-1])
    axes.set_xticks(counts)
    axes.set_xlabel("LoRAs at once", color=_GREY, fontsize=10)
    axes.set_ylabel("milliseconds a step", color=_GREY, fontsize=10)
    axes.tick_params(colors=_GREY, labelsize=10, length=0, pad=7)
    axes.grid(axis="y", color=_LINES, linewidth=0.8)
    axes.set_axisbelow(True)
    for edge in axes.spines.values():
        edge.set_visible(False)
