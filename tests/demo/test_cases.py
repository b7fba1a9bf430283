"""Which pictures are made, in which order, and what is told of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.cases import PAIRS, Case, cases_of, outcome_of
from tests.demo.shown import LEVELS, FakeStage, outcome

CASE = Case("2 LoRAs", 2, False)
PROMPTS = ("a house", "a tree", "a cat")


def _names(loras: int, *, is_controlled: bool) -> list[str]:
    return [case.name for case in cases_of(loras, is_controlled=is_controlled)]


def _timed(stage: FakeStage, steps: int) -> list[str]:
    """The sides of the runs with so many steps, in order."""
    return [each[0] for each in stage.told if isinstance(each, tuple) and each[1] == steps]


@pytest.mark.parametrize(
    ("loras", "is_controlled", "names"),
    [
        (0, False, ["no LoRA"]),
        (0, True, ["no LoRA", "ControlNet"]),
        (1, False, ["no LoRA", "1 LoRA"]),
        (2, True, ["no LoRA", "1 LoRA", "2 LoRAs", "ControlNet", "ControlNet, 2 LoRAs"]),
        (5, False, ["no LoRA", "1 LoRA", "2 LoRAs", "5 LoRAs"]),
    ],
)
def test_there_is_a_case_for_none_one_two_and_all_loras(
    loras: int, is_controlled: bool, names: list[str]
) -> None:
    assert _names(loras, is_controlled=is_controlled) == names


def test_a_case_knows_its_loras_and_whether_it_is_controlled() -> None:
    assert cases_of(2, is_controlled=True)[-1] == Case("ControlNet, 2 LoRAs", 2, True)


def test_the_cases_loras_are_put_on_first() -> None:
    stage = FakeStage()
    outcome_of(stage, CASE, 20, PROMPTS)
    assert stage.told[0] == 2


def test_sides_take_turns() -> None:
    stage = FakeStage()
    outcome_of(stage, CASE, 20, PROMPTS)
    assert _timed(stage, 20)[:4] == [STOCK, ACCELERATED, ACCELERATED, STOCK]
    assert [each[2]["prompt"] for each in stage.told[1:]].count("a house") == 2 + 2 * PAIRS


def test_the_other_prompts_pictures_are_made_once_by_each_side() -> None:
    stage = FakeStage()
    outcome_of(stage, CASE, 20, PROMPTS)
    others = [(side, asked["prompt"]) for side, _, asked in stage.told[3 + 2 * PAIRS :]]
    assert others == [(side, prompt) for side in (STOCK, ACCELERATED) for prompt in PROMPTS[1:]]


def test_both_sides_are_warmed_up_by_a_short_run() -> None:
    stage = FakeStage()
    outcome_of(stage, CASE, 20, PROMPTS)
    assert sorted(_timed(stage, 2)) == [ACCELERATED, STOCK]


def test_each_side_keeps_its_own_picture_and_time() -> None:
    made = outcome_of(FakeStage(), CASE, 20, PROMPTS)
    levels = {side: [int(each[0, 0, 0]) for each in some] for side, some in made.pictures.items()}
    assert levels == {side: [level] * len(PROMPTS) for side, level in LEVELS.items()}
    assert (made.figures.stock_ms, made.figures.accelerated_ms, made.figures.ratio) == (30, 20, 1.5)


def test_pictures_are_compared_without_wrapping_round() -> None:
    assert outcome(ours=0).difference == (100, 100.0)


def test_an_outcome_is_plain_values() -> None:
    told: dict[str, Any] = json.loads(json.dumps(outcome().as_dict()))
    times = ["stock_ms", "accelerated_ms", "ratio", "ratio_low95"]
    assert list(told) == ["name", *times, "first_ms", "switch_ms", "blocks", "difference"]
    assert told["difference"] == {"picture_max": 1, "picture_mean": 1.0}
