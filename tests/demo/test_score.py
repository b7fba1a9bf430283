"""The judge is right about drawings, and the score about the judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lib_accel.demo.train.card import write_card
from lib_accel.demo.train.drawing import draw
from lib_accel.demo.train.judge import edge_overlap, judge
from lib_accel.demo.train.scene import COLOURS, SHAPES, held_out, pair, single
from lib_accel.demo.train.score import Scores, judge_the_judge, subject_scenes
from lib_accel.demo.train.tally import NOTHING, QUESTIONS, Tally, tally_of

SCENE = single("red", "circle", "big", "middle", "white")
PAIR = pair((("red", "star"), ("blue", "circle")), "black")


@pytest.fixture(scope="module")
def judge_tally() -> Tally:
    return judge_the_judge()


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_judge_is_right_about_drawings(judge_tally: Tally, question: str) -> None:
    assert judge_tally.asked[question] == 300
    assert judge_tally.share(question) >= 0.97


def test_the_judge_is_right_about_noisy_and_blurred_drawings() -> None:
    noise = np.random.default_rng(1).normal(0, 12, (64, 64, 3))
    scenes = held_out()[::5]
    pictures = [np.clip(blurred(draw(scene)) + noise, 0, 255).astype(np.uint8) for scene in scenes]
    tally = tally_of(scenes, pictures)
    assert min(tally.share("colour"), tally.share("shape")) >= 0.9


def blurred(picture: np.ndarray) -> np.ndarray:
    padded = np.pad(picture.astype(np.float32), ((1, 1), (1, 1), (0, 0)), "edge")
    return sum(padded[row : row + 64, column : column + 64] for row in range(3) for column in range(3)) / 9


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "circle"])
def test_another_shape_is_wrong(shape: str) -> None:
    made = draw(single("red", shape, "big", "middle", "white"))
    tally = tally_of([SCENE], [made])
    assert (tally.share("shape"), tally.share("colour")) == (0, 1)
    assert tally.shapes["circle", shape] == 1


@pytest.mark.parametrize("colour", [name for name in COLOURS if name != "red"])
def test_another_colour_is_wrong(colour: str) -> None:
    made = draw(single(colour, "circle", "big", "middle", "white"))
    tally = tally_of([SCENE], [made])
    assert (tally.share("shape"), tally.share("colour")) == (1, 0)
    assert tally.colours["red", colour] == 1


def test_another_style_is_wrong() -> None:
    assert tally_of([SCENE], [draw(SCENE, "outline")]).share("style") == 0
    assert tally_of([SCENE], [draw(SCENE, "outline")], style="outline").share("style") == 1


@pytest.mark.parametrize("value", [0, 128, 250])
def test_an_empty_picture_is_wrong_in_all_that_a_thing_has(value: int) -> None:
    tally = tally_of([SCENE], [np.full((64, 64, 3), value, np.uint8)])
    assert [tally.share(name) for name in ("colour", "shape", "count", "style")] == [0, 0, 0, 0]
    assert tally.colours["red", NOTHING] == 1


def test_one_thing_of_two_is_not_half_right() -> None:
    made = draw(replace(PAIR, things=PAIR.things[:1]))
    assert tally_of([PAIR], [made]).share("colour") == 0


def test_a_pair_the_wrong_way_round_is_wrong() -> None:
    made = draw(pair((("blue", "circle"), ("red", "star")), "black"))
    tally = tally_of([PAIR], [made])
    assert (tally.share("colour"), tally.share("shape"), tally.share("count")) == (0, 0, 1)


def test_another_background_is_wrong() -> None:
    made = draw(single("red", "circle", "big", "middle", "gray"))
    assert tally_of([SCENE], [made]).share("background") == 0


def test_a_speck_is_no_thing() -> None:
    picture = draw(SCENE).copy()
    picture[4:8, 4:8] = (0, 0, 0)
    assert len(judge(picture).things) == 1


def test_edges_overlap_by_how_near_they_are() -> None:
    picture = draw(SCENE)
    near, far = np.roll(picture, 1, 1), np.roll(picture, 5, 1)
    assert edge_overlap(picture, picture) == 1
    assert 0.5 < edge_overlap(picture, near) < 1
    assert edge_overlap(picture, far) < 0.4


def test_subject_scenes_have_every_colour_size_and_background_once() -> None:
    assert len({(scene.things[0].colour, scene.size, scene.background) for scene in subject_scenes()}) == 54


def fake_scores(made: list[np.ndarray]) -> Scores:
    names = ("base", "outline", "zorb", "zorb_without", "zorb_others", "control", "control_without")
    styles = {"outline": "outline"}
    tallies = {name: tally_of([SCENE], made, style=styles.get(name, "filled")) for name in names}
    return Scores(dict.fromkeys(names, made), tallies, {"control": 0.6, "control_without": 0.1})


@pytest.fixture
def card(tmp_path, judge_tally: Tally) -> str:
    stock, ours = draw(SCENE), draw(SCENE).copy()
    ours[3, 3, 0] -= 2
    write_card(
        tmp_path / "card.md",
        stock=fake_scores([stock]),
        accelerated=fake_scores([ours]),
        judge=judge_tally,
        sizes={"model/unet.safetensors": 2**20},
        trained="## Training\n",
    )
    return (tmp_path / "card.md").read_text("utf-8")


def test_the_card_says_which_goal_is_missed(card: str) -> None:
    assert "- colour (base): 100%, goal 85%: reached" in card
    assert "- style (outline): 0%, goal 85%: **missed**" in card


def test_the_card_has_the_confusion_table(card: str) -> None:
    assert "| red | 1 | 0 | 0 | 0 | 0 | 0 | 0 |" in card
    assert "| circle | 1 | 0 | 0 | 0 | 0 | 0 |" in card


def test_the_card_has_the_largest_difference_between_stock_and_accelerated(card: str) -> None:
    assert "| model, 200 held-out prompts | 1 | 2 | 0.00016 |" in card


def test_the_card_has_the_sizes(card: str) -> None:
    assert "| model/unet.safetensors | 1.00 |" in card
