"""Two pictures, how far they are apart."""

from __future__ import annotations

import pytest
from PIL import Image

from lib_accel.difference import difference

GREY = Image.new("RGB", (4, 3), (100, 100, 100))


def test_equal_pictures_are_black() -> None:
    largest, apart = difference(GREY, GREY.copy())
    assert (largest, apart.getextrema()) == (0, ((0, 0),) * 3)


@pytest.mark.parametrize(("value", "drawn"), [(101, 20), (98, 40), (130, 255)])
def test_a_difference_is_drawn_twenty_times_as_large(value: int, drawn: int) -> None:
    other = GREY.copy()
    other.putpixel((1, 2), (100, value, 100))
    largest, apart = difference(GREY, other)
    assert (largest, apart.getpixel((1, 2)), apart.getpixel((0, 0))) == (
        abs(value - 100),
        (0, drawn, 0),
        (0, 0, 0),
    )


def test_other_modes_are_compared_as_colours() -> None:
    assert difference(GREY.convert("L"), GREY.convert("RGBA"))[0] == 0


def test_pictures_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(3, 3\)"):
        difference(GREY, Image.new("RGB", (3, 3)))
