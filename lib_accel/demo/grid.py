"""The demo's pictures side by side: a row a case; stock, ours, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.cases import Outcome, Picture

AMPLIFIED = 20  # times that differences are drawn larger than they are

# Pixels. The whole is as wide as a page of a repository shows it.
_CELL, _GAP, _LABEL, _MARGIN, _TOP = 222, 10, 172, 16, 112
_LABEL_HEIGHT = 112
_WIDTH = 2 * _MARGIN + _LABEL + 3 * _CELL + 2 * _GAP

_INK, _GREY, _PAPER, _ACCENT = "#1f2328", "#59636e", "#ffffff", "#0a5bc4"
_HEADLINE = "Stock and accelerated: same seed, same prompt"
_Pen = ImageDraw.ImageDraw


@dataclass(frozen=True)
class _Text:
    """A size of text in its two weights."""

    size_px: int

    def font(self, *, bold: bool = False) -> ImageFont.FreeTypeFont:
        # matplotlib brings these along, so that the text looks the same on every machine.
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", self.size_px)


_TITLE, _LARGE, _NORMAL, SMALL = _Text(19), _Text(24), _Text(14), _Text(12)


def grid(outcomes: Sequence[Outcome], *, remarks: Sequence[str]) -> Image.Image:
    """The picture of all pictures, RGB. remarks: two lines below the title."""
    height_px = _cell_height(outcomes[0].pictures[STOCK])
    row_px = max(height_px, _LABEL_HEIGHT) + _GAP
    sheet = Image.new("RGB", (_WIDTH, _TOP + len(outcomes) * row_px + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _head(pen, remarks)
    for number, outcome in enumerate(outcomes):
        top = _TOP + number * row_px
        _label(pen, outcome, top)
        for column, cell in enumerate(_cells(outcome, height_px)):
            sheet.paste(cell, (_left(column), top))
    return sheet


def amplified(outcome: Outcome) -> Picture:
    """What the pictures differ by, AMPLIFIED times; black where they are equal."""
    ours, stock = (outcome.pictures[side].astype(np.int32) for side in (ACCELERATED, STOCK))
    far: Picture = np.clip(np.abs(ours - stock) * AMPLIFIED, 0, 255).astype(np.uint8)
    return far


def _cells(outcome: Outcome, height_px: int) -> list[Image.Image]:
    pictures = (outcome.pictures[STOCK], outcome.pictures[ACCELERATED], amplified(outcome))
    cells = [_scaled(picture, height_px) for picture in pictures]
    largest = outcome.difference[0]
    remark = f"at most {largest} of 255" if largest else "identical"
    pen = ImageDraw.Draw(cells[-1])
    pen.text((10, height_px - 10), remark, "#d0d7de", SMALL.font(), anchor="ls")
    return cells


def _scaled(picture: Picture, height_px: int) -> Image.Image:
    return Image.fromarray(picture).resize((_CELL, height_px), Image.Resampling.LANCZOS)


def _cell_height(picture: Picture) -> int:
    height, width = (int(side) for side in picture.shape[:2])
    return round(_CELL * height / width)


def _left(column: int) -> int:
    return _MARGIN + _LABEL + column * (_CELL + _GAP)


def _head(pen: _Pen, remarks: Sequence[str]) -> None:
    pen.text((_MARGIN, 32), _HEADLINE, _INK, _TITLE.font(bold=True), anchor="ls")
    for number, remark in enumerate(remarks):
        text = fitting(remark, SMALL.font(), _WIDTH - 2 * _MARGIN)
        pen.text((_MARGIN, 54 + 17 * number), text, _GREY, SMALL.font(), anchor="ls")
    pen.text((_MARGIN, _TOP - 10), "time of a step", _GREY, _NORMAL.font(), anchor="ls")
    heads = ("stock diffusers", "accelerated", f"difference, {AMPLIFIED} times")
    for column, head in enumerate(heads):
        color = _ACCENT if column == 1 else _INK
        pen.text((_left(column), _TOP - 10), head, color, _NORMAL.font(bold=True), anchor="ls")


def _label(pen: _Pen, outcome: Outcome, top: int) -> None:
    figures = outcome.figures
    lines: list[tuple[int, str, str, Any]] = [
        (14 + 18 * number, name, _INK, _NORMAL.font(bold=True))
        for number, name in enumerate(outcome.case.name.split(", "))
    ]
    below = lines[-1][0]
    lines += [
        (below + 34, f"{figures.ratio:.2f}x", _ACCENT, _LARGE.font(bold=True)),
        (below + 58, f"stock {time_text(figures.stock_ms)}", _GREY, SMALL.font()),
        (below + 75, f"accelerated {time_text(figures.accelerated_ms)}", _GREY, SMALL.font()),
    ]
    for down, text, color, font in lines:
        pen.text((_MARGIN, top + down), text, color, font, anchor="ls")


def time_text(ms: float) -> str:
    """A time in three digits and the unit that suits it."""
    return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1000:.3g} s"


def fitting(text: str, font: Any, room_px: int) -> str:
    """The text, cut at its end if it is wider."""
    while text and font.getlength(text) > room_px:
        text = text.rstrip("…")[:-1].rstrip() + "…"
    return text
