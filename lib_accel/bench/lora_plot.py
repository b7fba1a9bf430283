"""The time of a switch against the number of networks, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lib_accel.bench.sides import BY_LAYER, OURS, PEFT

_INK, _GREY, _LINES = "#1f2328", "#59636e", "#d8dee4"
_COLORS = {PEFT: "#b3541e", BY_LAYER: "#6e7781", OURS: "#0a5bc4"}
_NAMES = {PEFT: "diffusers + peft, merged", BY_LAYER: "merged layer by layer", OURS: "accelerated"}
_WIDTH_IN, _HEIGHT_IN, _DPI = 5.6, 4.8, 100
_LABEL = 0.11  # height of a label with room to the next, as a share of the field


def save_plot(report: Mapping[str, Any], file: Path) -> None:
    """Writes the picture, its format that of the file's name."""
    figure(report).savefig(file)


def figure(report: Mapping[str, Any]) -> Figure:
    """A field for each size, seconds on a logarithmic scale: equal heights are equal ratios."""
    sizes = report["switch"]
    drawn = Figure(figsize=(_WIDTH_IN * len(sizes), _HEIGHT_IN), dpi=_DPI, facecolor="white")
    drawn.text(0.02, 0.95, "From LoRA files to weights", color=_INK, fontsize=13, fontweight="bold")
    about = report["environment"]
    where = f"{about['cpu']}, threads: {about['threads']}, torch {about['torch']}, peft {about['peft']}"
    drawn.text(0.02, 0.905, f"one set changed for another; {where}", color=_GREY, fontsize=8.5)
    share = 1 / len(sizes)
    for number, (name, size) in enumerate(sizes.items()):
        axes = drawn.add_axes((share * (number + 0.13), 0.12, share * 0.54, 0.66))
        _field(axes, name, size)
    return drawn


def _field(axes: Any, name: str, size: Mapping[str, Any]) -> None:
    about, lines = size["about"], switch_lines(size)
    axes.set_title(f"{name}, {about['layers']} layers, {about['dtype']}", color=_INK, fontsize=10, loc="left")
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    for side, points in lines.items():
        counts, seconds = zip(*points, strict=True)
        axes.plot(counts, seconds, color=_COLORS[side], linewidth=2.2, marker="o", markersize=5.5)
    low, high = axes.get_ylim()
    ends = {side: points[-1][1] for side, points in lines.items()}
    shares = {side: math.log(end / low) / math.log(high / low) for side, end in ends.items()}
    for side, height in spread(shares, _LABEL).items():
        text = f"{_NAMES[side]}\n{seconds_text(ends[side])}"
        axes.text(1.03, height, text, color=_COLORS[side], fontsize=9, va="center", transform=axes.transAxes)
    axes.set_xticks([int(count) for count in size["counts"]], list(size["counts"]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_text(value)))
    axes.set_xlabel("LoRAs", color=_GREY, fontsize=10)
    axes.tick_params(colors=_GREY, labelsize=9, length=0, which="both", pad=6)
    axes.grid(axis="y", color=_LINES, linewidth=0.8)
    axes.set_axisbelow(True)
    for edge in axes.spines.values():
        edge.set_visible(False)


def spread(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights in the order that they had, but at least that far apart."""
    placed: dict[str, float] = {}
    floor = -math.inf
    for side in sorted(heights, key=lambda each: heights[each]):
        placed[side] = floor = max(heights[side], floor + gap)
    excess = {side: placed[side] - heights[side] for side in placed}
    return {side: height - max(excess.values(), default=0.0) / 2 for side, height in placed.items()}


def switch_lines(size: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Each side's points (networks, seconds), for those numbers that it was timed with."""
    points = {
        side: [
            (int(count), each[side]["switch"]["s"]) for count, each in size["counts"].items() if side in each
        ]
        for side in _NAMES
    }
    return {side: line for side, line in points.items() if line}


def seconds_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
