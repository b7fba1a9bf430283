"""Pictures are what their captions say, the same in each run, and never one that is held out."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lib_accel.demo.train.captions import caption, shapeless
from lib_accel.demo.train.drawing import STYLES, draw, edges, hint
from lib_accel.demo.train.judge import judge
from lib_accel.demo.train.scene import (
    COLOURS,
    PLACES,
    RADII,
    SHAPES,
    SIDE,
    SUBJECT,
    Scene,
    draw_lots,
    held_out,
    held_out_keys,
    pair,
    single,
)

RED_CIRCLE = single("red", "circle", "big", "left", "white")


def scenes(count: int, seed: int = 1) -> list[Scene]:
    lot = random.Random(seed)
    return [draw_lots(lot) for _ in range(count)]


def test_the_same_lots_give_the_same_pictures() -> None:
    for one, other in zip(scenes(20), scenes(20), strict=True):
        np.testing.assert_array_equal(draw(one), draw(other))


def test_other_lots_give_other_pictures() -> None:
    assert scenes(20) != scenes(20, seed=2)


def test_a_filled_circle_covers_what_geometry_says() -> None:
    covered = np.mean(draw(RED_CIRCLE)[..., 1] < 145) * SIDE**2
    assert covered == pytest.approx(np.pi * RADII["big"] ** 2, rel=0.02)


def test_captions_say_what_the_picture_shows() -> None:
    lot = random.Random(3)
    for scene in scenes(100):
        words = caption(scene, lot).replace("stars", "star").split()
        seen = judge(draw(scene))
        said = [word for word in words if word in COLOURS]
        assert set(said) <= {thing.colour for thing in seen.things}
        shapes = {word.removesuffix("s") for word in words} & set(SHAPES)
        assert shapes <= {thing.shape for thing in seen.things}
        assert "background" not in words or seen.background in words


def test_a_pair_is_told_from_left_to_right() -> None:
    scene = pair((("red", "star"), ("orange", "circle")), "black")
    assert caption(scene) == "a red star and an orange circle on a black background"
    assert [thing.colour for thing in judge(draw(scene)).things] == ["red", "orange"]


def test_two_of_a_kind_are_told_as_two() -> None:
    scene = pair((("blue", "square"), ("blue", "square")), "gray")
    assert caption(scene) == "two blue squares on a gray background"
    assert len(judge(draw(scene)).things) == 2


def test_a_whole_caption_tells_every_attribute() -> None:
    assert caption(RED_CIRCLE) == "a big red circle at the left on a white background"


def test_a_shapeless_caption_names_no_shape_and_no_place() -> None:
    assert shapeless(RED_CIRCLE) == "a red shape on a white background"


@pytest.mark.parametrize(
    ("place", "columns", "rows"),
    [
        ("left", (14, 26), (28, 36)),
        ("right", (38, 50), (28, 36)),
        ("top", (28, 36), (14, 26)),
        ("bottom", (28, 36), (38, 50)),
        ("middle", (28, 36), (28, 36)),
    ],
)
def test_a_thing_is_where_its_word_says(place: str, columns: tuple[int, int], rows: tuple[int, int]) -> None:
    (thing,) = judge(draw(single("red", "square", "medium", place, "white"))).things
    assert columns[0] < thing.x < columns[1]
    assert rows[0] < thing.y < rows[1]


def test_sizes_are_in_order() -> None:
    areas = [np.mean(draw(single("red", "circle", size, "middle", "white"))[..., 1] < 145) for size in RADII]
    assert areas == sorted(areas)
    assert areas[0] * 2 < areas[-1]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", [*SHAPES, SUBJECT])
def test_nothing_is_cut_off_by_the_frame(shape: str, style: str) -> None:
    for place in PLACES:
        found = edges(draw(single("red", shape, "big", place, "white"), style))
        assert not np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]]).any()


def test_an_outline_encloses_background() -> None:
    picture = draw(single("red", "circle", "big", "middle", "white"), "outline")
    np.testing.assert_array_equal(picture[SIDE // 2, SIDE // 2], (250, 250, 250))


def test_no_training_picture_has_a_held_out_combination() -> None:
    assert not {scene.key for scene in scenes(5000)} & held_out_keys()


def test_training_pictures_have_most_of_the_other_combinations_of_one_thing() -> None:
    drawn = {scene.key for scene in scenes(20000) if len(scene.things) == 1}
    assert len(drawn) > 0.95 * (len(COLOURS) * len(SHAPES) * len(RADII) * len(PLACES) * 3 - 150)


def test_two_hundred_different_scenes_are_held_out() -> None:
    assert len({scene.key for scene in held_out()}) == 200
    assert sum(len(scene.things) == 2 for scene in held_out()) == 50


def test_a_hint_is_white_where_the_picture_has_edges_and_black_elsewhere() -> None:
    picture = draw(RED_CIRCLE)
    shown = hint(picture)
    assert set(np.unique(shown)) == {0, 255}
    np.testing.assert_array_equal(shown[..., 0] > 0, edges(picture))


def test_a_square_has_edges_on_all_four_sides() -> None:
    picture = np.zeros((12, 12, 3), np.uint8)
    picture[3:9, 3:9] = 255
    found = edges(picture)
    assert found[3:9, [2, 8]].all()
    assert found[[2, 8], 3:9].all()
    assert found.sum() == 4 * 6 - 1  # two sides share a corner


def test_a_plain_picture_has_no_edges() -> None:
    assert not edges(np.full((64, 64, 3), 128, np.uint8)).any()
