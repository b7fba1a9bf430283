"""The plot is honest, and its texts can be read."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.growth import COUNTS
from lib_accel.demo.plot import figure, plot, times_ms
from tests.demo.shown import points

TITLE = "Time of a step by number of LoRAs (seeded LoRAs made for this model)"
REMARKS = ["a small model, 64x64, 20 steps, float32", "a processor of some length, 16 threads, torch 2.13.0"]
USUAL = points(stock=(62.0, 9.3), ours=(58.0, 0.0))
ODD = {
    "usual": USUAL,
    "equal": points(stock=(60.0, 0.0), ours=(60.0, 0.0)),
    "slower": points(stock=(2000.0, 9.0), ours=(2300.0, 0.0)),
    "long": points(stock=(50.93, 8.3), ours=(49.31, 0.0)),
    "steep": points(stock=(62.0, 90.0), ours=(55.0, 0.0)),
    "tiny": points(stock=(0.9, 0.2), ours=(0.1, 0.0)),
}


def _drawn(grown: Any) -> Figure:
    return figure(grown, title=TITLE, remarks=REMARKS)


def _boxes(drawn: Figure) -> dict[str, Any]:
    """Where each text stands, in pixels."""
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()  # what stands beside an axis gets its place only now
    renderer = canvas.get_renderer()
    texts = [text for text in drawn.findobj(Text) if text.get_text() and text.get_visible()]
    return {f"{n} {text.get_text()}": text.get_window_extent(renderer) for n, text in enumerate(texts)}


def _texts(drawn: Figure) -> str:
    return "\n".join(text.get_text() for text in drawn.findobj(Text))


@pytest.mark.parametrize("grown", ODD.values(), ids=ODD)
def test_times_begin_at_zero(grown: Any) -> None:
    low, high = _drawn(grown).axes[0].get_ylim()
    assert low == 0
    assert high > max(times_ms(grown, STOCK) + times_ms(grown, ACCELERATED))


def test_each_side_is_a_line_through_all_its_points() -> None:
    lines = [line.get_xydata().tolist() for line in _drawn(USUAL).axes[0].get_lines()[:2]]
    for line, side in zip(lines, (STOCK, ACCELERATED), strict=True):
        assert line == [list(pair) for pair in zip(COUNTS, times_ms(USUAL, side), strict=True)]


@pytest.mark.parametrize("grown", ODD.values(), ids=ODD)
def test_no_two_texts_overlap(grown: Any) -> None:
    boxes = _boxes(_drawn(grown))
    assert [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])] == []


@pytest.mark.parametrize("grown", ODD.values(), ids=ODD)
def test_no_text_leaves_the_picture(grown: Any) -> None:
    width, height = plot(grown, title=TITLE, remarks=REMARKS).size
    outside = [
        text
        for text, box in _boxes(_drawn(grown)).items()
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]
    assert outside == []


def test_both_lines_are_named_where_they_end() -> None:
    texts = _texts(_drawn(USUAL))
    assert "diffusers + peft" in texts
    assert "accelerated" in texts


def test_title_and_remarks_are_those_that_were_given() -> None:
    texts = _texts(_drawn(USUAL))
    assert [text in texts for text in (TITLE, *REMARKS)] == [True] * 3


def test_a_remark_that_is_too_long_is_cut() -> None:
    remark = "a processor with a long name " * 9
    boxes = _boxes(figure(USUAL, title=TITLE, remarks=[remark, remark]))
    cut = [box for text, box in boxes.items() if text.endswith("…")]
    assert len(cut) == 2
    assert max(box.x1 for box in cut) < 900


def test_what_a_lora_adds_is_told_and_never_as_minus_nothing() -> None:
    texts = _texts(_drawn(points(stock=(60.0, 9.34), ours=(60.0, -0.01))))
    assert "+9.3 ms each LoRA" in texts
    assert "+0.0 ms each LoRA" in texts


def test_the_picture_is_as_wide_as_a_page_shows_it() -> None:
    assert plot(USUAL, title=TITLE, remarks=REMARKS).size == (900, 500)
