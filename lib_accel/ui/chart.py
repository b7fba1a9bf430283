"""A line chart as inline SVG: it takes its colours from the page, in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lib_accel.ui.markup import text

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 44


class Line(NamedTuple):
    """One curve: its style, what it is called, and its points from left to right."""

    style: str
    label: str
    points: Sequence[tuple[float, float]]


def ticks(largest: float, most: int = 5) -> list[float]:
    """Round numbers from 0 up to the first that is not below `largest`, at most `most` steps."""
    if not math.isfinite(largest) or largest <= 0:
        return [0.0, 1.0]
    rough = largest / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]


def line_chart(lines: Sequence[Line], *, x_title: str, y_title: str) -> str:
    """The curves over a common ground that begins at 0, as <svg>; the words beside them are text."""
    points = [point for line in lines for point in line.points]
    heights = ticks(max((y for _, y in points), default=0.0))
    places = sorted({x for x, _ in points})
    scale = _Scale(max(places, default=1.0) or 1.0, heights[-1])
    body = (
        "".join(_level(scale, y) for y in heights)
        + "".join(_place(scale, x) for x in places)
        + _title(x_title, f"translate({(_LEFT + _WIDTH - _RIGHT) / 2:.0f} {_HEIGHT - 6})")
        + _title(y_title, f"translate(13 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)")
        + "".join(_curve(scale, line) for line in lines)
    )
    label = f"{y_title} by {x_title}: " + "; ".join(_said(line) for line in lines)
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return f'<svg class="accel-chart" viewBox="{box}" role="img" aria-label="{text(label)}">{body}</svg>'


class _Scale(NamedTuple):
    """From values to places in the picture."""

    largest_x: float
    largest_y: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / self.largest_x
        return across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / self.largest_y


def _title(words: str, where: str) -> str:
    return f'<text transform="{where}" class="accel-axis">{text(words)}</text>'


def _level(scale: _Scale, y: float) -> str:
    _, height = scale.at(0, y)
    grid = (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" class="accel-grid"/>'
    )
    return f'{grid}<text x="{_LEFT - 8}" y="{height + 4:.1f}" class="accel-level">{y:g}</text>'


def _place(scale: _Scale, x: float) -> str:
    across, ground = scale.at(x, 0)
    return f'<text x="{across:.1f}" y="{ground + 17:.1f}" class="accel-place">{x:g}</text>'


def _curve(scale: _Scale, line: Line) -> str:
    places = [scale.at(x, y) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3.5">'
        f"<title>{text(f'{line.label}: {value:.1f} ms, {x:g} LoRAs')}</title></circle>"
        for place, (x, value) in zip(places, line.points, strict=True)
    )
    return f'<g class="accel-curve accel-curve-{text(line.style)}"><polyline points="{path}"/>{dots}</g>'


def _said(line: Line) -> str:
    return f"{line.label} " + ", ".join(f"{y:.1f} at {x:g}" for x, y in line.points)
