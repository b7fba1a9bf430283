"""The chart of the benchmark: round ticks, all points inside, words for who cannot see it."""

from __future__ import annotations

import re

import pytest

from lib_accel.ui.chart import Line, line_chart, ticks

_LINES = (
    Line("stock", "stock", [(0, 61.6), (4, 99.3), (16, 192.0)]),
    Line("ours", "<ours>", [(0, 58.4), (4, 57.9), (16, 57.6)]),
)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (192, [0, 50, 100, 150, 200]),
        (5, [0, 1, 2, 3, 4, 5]),
        (0.07, pytest.approx([0, 0.02, 0.04, 0.06, 0.08])),
        (0, [0, 1]),
        (float("inf"), [0, 1]),
    ],
)
def test_ticks_are_round_and_reach_the_largest_value(largest: float, expected: list[float]) -> None:
    assert ticks(largest) == expected


def test_every_point_is_inside_the_picture() -> None:
    drawn = line_chart(_LINES, x_title="LoRAs", y_title="ms per step")
    places = re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', drawn)
    assert len(places) == 6
    assert all(0 <= float(x) <= 640 and 0 <= float(y) <= 260 for x, y in places)


def test_more_is_higher() -> None:
    drawn = line_chart(_LINES, x_title="LoRAs", y_title="ms per step")
    stock = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)[:3]]
    assert stock == sorted(stock, reverse=True)


def test_a_chart_tells_its_points_in_words() -> None:
    drawn = line_chart(_LINES, x_title="LoRAs", y_title="ms per step")
    assert 'aria-label="ms per step by LoRAs: stock 61.6 at 0, 99.3 at 4, 192.0 at 16; &lt;ours&gt; ' in drawn
    assert "<ours>" not in drawn


@pytest.mark.parametrize("points", [[], [(0, 0)], [(3, 5.0)]])
def test_a_chart_of_one_point_or_none_is_no_error(points: list[tuple[float, float]]) -> None:
    assert line_chart([Line("stock", "stock", points)], x_title="x", y_title="y").startswith("<svg")
