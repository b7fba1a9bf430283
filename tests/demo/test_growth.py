"""How the time of a step grows with the number of LoRAs."""

from __future__ import annotations

import pytest

from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.growth import COUNTS, PAIRS, STEPS, point, slope_ms
from tests.demo.shown import FakeStage, points

LATENT = {"output_type": "latent"}


def test_the_growth_begins_without_loras_and_doubles() -> None:
    assert COUNTS == (0, 1, 2, 4, 8, 16)


def test_a_point_has_its_number_of_loras_and_both_times() -> None:
    assert point(FakeStage(), 4).as_dict() == {
        "loras": 4,
        "stock_ms": 30.0,
        "accelerated_ms": 20.0,
        "ratio": 1.5,
        "ratio_low95": 1.5,
    }


def test_sides_take_turns_after_a_short_run_of_each() -> None:
    stage = FakeStage()
    point(stage, 4)
    warm = [(ACCELERATED, 2, LATENT), (STOCK, 2, LATENT)]
    turns = [(side, STEPS, LATENT) for side in (STOCK, ACCELERATED, ACCELERATED, STOCK)]
    assert stage.told == [4, *warm, *turns]
    assert PAIRS == 2


def test_what_a_lora_adds_is_taken_over_the_whole_range() -> None:
    grown = points(stock=(60.0, 9.0), ours=(55.0, -0.5))
    assert slope_ms(grown, STOCK) == pytest.approx(9.0)
    assert slope_ms(grown, ACCELERATED) == pytest.approx(-0.5)
