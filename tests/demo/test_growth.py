"""How the time of a step grows with the number of LoRAs."""

from __future__ import annotations

import pytest

from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.growth import COUNTS, STEPS, grow, rounds, slope_ms
from tests.demo.shown import FakeStage, points

LATENT = {"prompt": "a house", "output_type": "latent"}


def test_the_growth_begins_without_loras_and_doubles() -> None:
    assert COUNTS == (0, 1, 2, 4, 8, 16)


def test_the_numbers_go_up_and_down_with_another_side_first() -> None:
    up, down = (STOCK, ACCELERATED), (ACCELERATED, STOCK)
    assert list(rounds((0, 1))) == [(0, up), (1, up), (1, down), (0, down)]


def test_both_sides_are_warmed_up_once() -> None:
    stage = FakeStage()
    grow(stage, (0, 4), "a house", lambda part: None)
    assert stage.told[:2] == [(ACCELERATED, 2, LATENT), (STOCK, 2, LATENT)]


def test_a_number_of_loras_is_worn_while_both_sides_run() -> None:
    stage = FakeStage()
    grow(stage, (4,), "a house", lambda part: None)
    stock, ours = ((side, STEPS, LATENT) for side in (STOCK, ACCELERATED))
    assert stage.told[2:] == [4, stock, ours, 4, ours, stock]


def test_a_point_has_its_number_of_loras_and_both_times() -> None:
    (only,) = grow(FakeStage(), (4,), "a house", lambda part: None)
    times = {"stock_ms": 30.0, "accelerated_ms": 20.0, "ratio": 1.5, "ratio_low95": 1.5}
    assert only.as_dict() == {"loras": 4, **times}


def test_each_part_is_told_as_it_begins() -> None:
    parts: list[str] = []
    grow(FakeStage(), (0, 1), "a house", parts.append)
    assert parts == [f"a step with {each}" for each in ("0 LoRAs", "1 LoRA", "1 LoRA", "0 LoRAs")]


def test_what_a_lora_adds_is_taken_over_the_whole_range() -> None:
    grown = points(stock=(60.0, 9.0), ours=(55.0, -0.5))
    assert slope_ms(grown, STOCK) == pytest.approx(9.0)
    assert slope_ms(grown, ACCELERATED) == pytest.approx(-0.5)
