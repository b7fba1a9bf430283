"""The picture of all pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_accel.demo import grid as room
from lib_accel.demo.cases import Outcome, cases_of
from lib_accel.demo.grid import AMPLIFIED, SMALL, amplified, fitting, grid, time_text
from tests.demo.shown import LEVELS, outcome

REMARKS = ["a small model, 64x64, 20 steps", "a processor, torch 2"]
NAMES = [case.name for case in cases_of(5, is_controlled=True)]


def _grid(*outcomes: Outcome, **settings: Any) -> Image.Image:
    return grid(outcomes, **{"prompts": ["a house"], "remarks": REMARKS, **settings})


def _middle(
    sheet: Image.Image, column: int, row: int, rows: int, *, prompt: int = 0, prompts: int = 1
) -> Any:
    """The colour in the middle of a cell."""
    columns = room._Columns(prompts)
    cell = (sheet.height - room._TOP - room._MARGIN + room._GAP) // rows
    left = columns.left(prompt, column) + columns.cell_px // 2
    return sheet.getpixel((left, room._TOP + row * cell + columns.cell_px // 2))


def test_a_row_has_stocks_picture_ours_and_their_difference() -> None:
    sheet = _grid(outcome())
    levels = [*LEVELS.values(), AMPLIFIED]
    assert [_middle(sheet, column, 0, 1) for column in range(3)] == [(level,) * 3 for level in levels]


@pytest.mark.parametrize("prompt", [0, 1])
def test_each_prompt_has_three_columns(prompt: int) -> None:
    sheet = _grid(outcome(prompts=2), prompts=["a house", "a tree"])
    levels = [*LEVELS.values(), AMPLIFIED]
    found = [_middle(sheet, column, 0, 1, prompt=prompt, prompts=2)[0] for column in range(3)]
    assert found == levels


def test_each_case_has_a_row_in_its_turn() -> None:
    sheet = _grid(outcome(ours=10), outcome(ours=20), outcome(ours=30))
    assert [_middle(sheet, 1, row, 3)[0] for row in range(3)] == [10, 20, 30]


def test_the_hint_stands_beside_the_pictures_that_follow_it() -> None:
    hint = Image.new("RGB", (64, 64), (1, 2, 3))
    for is_controlled in (True, False):
        sheet = _grid(outcome(is_controlled=is_controlled), hint=hint)
        place = (room._MARGIN + room._LABEL - room._GAP - room._HINT // 2, room._TOP + room._HINT // 2)
        assert (sheet.getpixel(place) == (1, 2, 3)) == is_controlled


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_the_sheet_is_as_wide_as_a_page_shows_it(prompts: int) -> None:
    sheet = _grid(outcome(prompts=prompts), prompts=["a house"] * prompts)
    columns = room._Columns(prompts)
    right = columns.left(prompts - 1, 2) + columns.cell_px
    assert 880 <= sheet.width <= 900
    assert 0 <= sheet.width - room._MARGIN - right < 10


@pytest.mark.parametrize("head", room._HEADS)
def test_a_head_is_no_wider_than_its_column(head: str) -> None:
    assert SMALL.font(bold=True).getlength(head) <= room._Columns(2).cell_px


def test_wide_pictures_keep_their_shape() -> None:
    square, wide = (_grid(outcome(width=width)) for width in (64, 96))
    assert square.height - wide.height == round(room._Columns(1).cell_px / 3)


def test_equal_pictures_differ_by_black() -> None:
    assert not amplified(outcome(ours=LEVELS["stock"])).any()


@pytest.mark.parametrize(("ours", "seen"), [(101, 20), (99, 20), (255, 255), (0, 255)])
def test_differences_are_enlarged_and_cut_at_white(ours: int, seen: int) -> None:
    assert np.unique(amplified(outcome(ours=ours))).tolist() == [seen]


@pytest.mark.parametrize("name", NAMES)
def test_a_cases_name_keeps_clear_of_the_pictures(name: str) -> None:
    font = room._NORMAL.font(bold=True)
    assert max(font.getlength(line) for line in name.split(", ")) < room._LABEL


def test_the_longest_times_keep_clear_of_the_pictures() -> None:
    assert SMALL.font().getlength("accelerated 88.8 ms") < room._LABEL


def test_a_row_is_higher_than_what_stands_beside_it() -> None:
    sheet = np.asarray(_grid(outcome("ControlNet, 2 LoRAs", loras=2, width=256)))
    below = sheet[-room._MARGIN :, : room._LABEL]
    assert (below == 255).all()


def test_a_text_that_fits_is_left_alone() -> None:
    font = SMALL.font()
    assert fitting("short", font, 500) == "short"


def test_a_text_that_is_too_wide_is_cut() -> None:
    font = SMALL.font()
    cut = fitting("a very long prompt " * 20, font, 500)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 500


@pytest.mark.parametrize(
    ("ms", "text"),
    [(1.234, "1.23 ms"), (62.0, "62 ms"), (998.9, "999 ms"), (1000.0, "1 s"), (12345, "12.3 s")],
)
def test_a_time_has_three_digits_and_a_unit(ms: float, text: str) -> None:
    assert time_text(ms) == text
