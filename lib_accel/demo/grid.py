"""The demo's pictures side by side: a row a case; for each prompt stock, ours, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.cases import Outcome, Picture
from lib_accel.difference import AMPLIFIED, difference

# Pixels. The whole is as wide as a page of a repository shows it.
_WIDTH, _GAP, _PROMPT_GAP, _LABEL, _MARGIN, _TOP = 890, 8, 22, 172, 16, 132
_LABEL_HEIGHT = 112
_HINT = 50

_INK, _GREY, _PAPER, _ACCENT = "#1f2328", "#59636e", "#ffffff", "#0a5bc4"
_HEADLINE = "Stock and accelerated: same seed, same prompt"
_HEADS = ("stock", "accelerated", f"difference x{AMPLIFIED}")
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


@dataclass(frozen=True)
class _Columns:
    """Where the pictures stand: three for each prompt."""

    prompts: int

    @property
    def cell_px(self) -> int:
        """Width of a picture."""
        gaps = (self.prompts - 1) * _PROMPT_GAP + 2 * self.prompts * _GAP
        return (_WIDTH - 2 * _MARGIN - _LABEL - gaps) // (3 * self.prompts)

    @property
    def prompt_px(self) -> int:
        """Width of a prompt's three pictures."""
        return 3 * self.cell_px + 2 * _GAP

    def left(self, prompt: int, column: int) -> int:
        """Left edge of a picture."""
        start = _MARGIN + _LABEL + prompt * (self.prompt_px + _PROMPT_GAP)
        return start + column * (self.cell_px + _GAP)


def grid(
    outcomes: Sequence[Outcome],
    *,
    prompts: Sequence[str],
    remarks: Sequence[str],
    hint: Image.Image | None = None,
) -> Image.Image:
    """The picture of all pictures, RGB. remarks: two lines below the title; hint: the ControlNet's."""
    columns = _Columns(len(prompts))
    height_px = _cell_height(outcomes[0].pictures[STOCK][0], columns.cell_px)
    row_px = max(height_px, _LABEL_HEIGHT) + _GAP
    sheet = Image.new("RGB", (_WIDTH, _TOP + len(outcomes) * row_px + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _head(pen, columns, prompts, remarks)
    for number, outcome in enumerate(outcomes):
        top = _TOP + number * row_px
        _label(pen, outcome, top)
        if hint is not None and outcome.case.is_controlled:
            sheet.paste(_small(hint), (_MARGIN + _LABEL - _GAP - _HINT, top))
        for prompt in range(len(prompts)):
            cells = _cells(outcome, prompt, (columns.cell_px, height_px))
            for column, cell in enumerate(cells):
                sheet.paste(cell, (columns.left(prompt, column), top))
    return sheet


def amplified(outcome: Outcome, prompt: int = 0) -> Picture:
    """What the pictures of a prompt differ by, AMPLIFIED times; black where they are equal."""
    return np.asarray(_apart(outcome, prompt)[1])


def _apart(outcome: Outcome, prompt: int) -> tuple[int, Image.Image]:
    return difference(*(Image.fromarray(outcome.pictures[side][prompt]) for side in (ACCELERATED, STOCK)))


def _cells(outcome: Outcome, prompt: int, size_px: tuple[int, int]) -> list[Image.Image]:
    largest, apart = _apart(outcome, prompt)
    drawn = (Image.fromarray(outcome.pictures[side][prompt]) for side in (STOCK, ACCELERATED))
    cells = [each.resize(size_px, Image.Resampling.LANCZOS) for each in (*drawn, apart)]
    remark = f"up to {largest} of 255" if largest else "identical"
    pen = ImageDraw.Draw(cells[-1])
    pen.text((6, size_px[1] - 7), remark, "#d0d7de", SMALL.font(), anchor="ls")
    return cells


def _small(hint: Image.Image) -> Image.Image:
    side_px = round(_HINT * hint.height / hint.width)
    return hint.convert("RGB").resize((_HINT, min(side_px, _LABEL_HEIGHT)), Image.Resampling.LANCZOS)


def _cell_height(picture: Picture, width_px: int) -> int:
    height, width = (int(side) for side in picture.shape[:2])
    return round(width_px * height / width)


def _head(pen: _Pen, columns: _Columns, prompts: Sequence[str], remarks: Sequence[str]) -> None:
    pen.text((_MARGIN, 32), _HEADLINE, _INK, _TITLE.font(bold=True), anchor="ls")
    for number, remark in enumerate(remarks):
        text = fitting(remark, SMALL.font(), _WIDTH - 2 * _MARGIN)
        pen.text((_MARGIN, 54 + 17 * number), text, _GREY, SMALL.font(), anchor="ls")
    pen.text((_MARGIN, _TOP - 10), "time of a step", _GREY, SMALL.font(), anchor="ls")
    for number, prompt in enumerate(prompts):
        text = fitting(prompt, _NORMAL.font(), columns.prompt_px)
        pen.text((columns.left(number, 0), _TOP - 30), text, _INK, _NORMAL.font(), anchor="ls")
        for column, head in enumerate(_HEADS):
            color = _ACCENT if column == 1 else _INK
            place = (columns.left(number, column), _TOP - 10)
            pen.text(place, head, color, SMALL.font(bold=True), anchor="ls")


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
