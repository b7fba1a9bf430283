"""What may be in a picture, how it is drawn by lot, and which combinations are kept for the score."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cache

SIDE = 64  # of a picture, pixels

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 50),
    "purple": (145, 60, 180),
    "orange": (245, 135, 25),
}
BACKGROUNDS = {"white": (250, 250, 250), "black": (15, 15, 15), "gray": (128, 128, 128)}
SHAPES = ("circle", "square", "triangle", "star")
SUBJECT = "heart"  # what only the subject LoRA can draw, and its word, which means nothing to the model
SUBJECT_WORD = "zorb"
RADII = {"small": 12, "medium": 16, "big": 21}
PLACES = {"middle": (32, 32), "left": (20, 32), "right": (44, 32), "top": (32, 20), "bottom": (32, 44)}

_PAIR_RADIUS = 12
_PAIR_CENTRES = (17, 47)
_MARGIN = 2  # pixels between a thing and the frame

PAIR_SHARE = 0.3
_SIZE_WEIGHTS = (1, 2, 1)
_PLACE_WEIGHTS = (4, 1, 1, 1, 1)
_HELD_OUT_SINGLES = 150
_HELD_OUT_PAIRS = 50
_HELD_OUT_SEED = 2024

Key = tuple[str, ...]


@dataclass(frozen=True)
class Thing:
    """One shape of one colour; centre and radius in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Things on a plain background, from left to right. `size` and `place` are words for a single thing."""

    background: str
    things: tuple[Thing, ...]
    size: str = ""
    place: str = ""

    @property
    def key(self) -> Key:
        """What is told of this scene when everything is told: the combination that may be held out."""
        looks = tuple(word for thing in self.things for word in (thing.colour, thing.shape))
        return (*looks, self.size, self.place, self.background)


def single(
    colour: str, shape: str, size: str, place: str, background: str, lot: random.Random | None = None
) -> Scene:
    """A scene of one thing; `lot` shifts and resizes it a little, as the pictures for training are."""
    shift = lot or _NoLot()
    radius = RADII[size] + shift.uniform(-1, 1)
    low, high = radius + _MARGIN, SIDE - radius - _MARGIN
    x, y = (min(max(value + shift.uniform(-2, 2), low), high) for value in PLACES[place])
    return Scene(background, (Thing(colour, shape, x, y, radius),), size, place)


def pair(looks: tuple[tuple[str, str], ...], background: str, lot: random.Random | None = None) -> Scene:
    """A scene of two things, (colour, shape) each, side by side."""
    shift = lot or _NoLot()
    things = tuple(
        Thing(
            colour,
            shape,
            x + shift.uniform(-1, 1),
            SIDE / 2 + shift.uniform(-4, 4),
            _PAIR_RADIUS + shift.uniform(-1, 1),
        )
        for (colour, shape), x in zip(looks, _PAIR_CENTRES, strict=True)
    )
    return Scene(background, things)


class _NoLot(random.Random):
    """Always the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def draw_lots(
    lot: random.Random, shapes: tuple[str, ...] = SHAPES, *, pair_share: float = PAIR_SHARE
) -> Scene:
    """A scene for training: any but the held-out combinations."""
    while True:
        scene = _any_scene(lot, shapes, pair_share)
        if scene.key not in held_out_keys():
            return scene


def _any_scene(lot: random.Random, shapes: tuple[str, ...], pair_share: float) -> Scene:
    background = lot.choice(list(BACKGROUNDS))
    if lot.random() < pair_share:
        first = (lot.choice(list(COLOURS)), lot.choice(shapes))
        other = (lot.choice(list(COLOURS)), lot.choice(shapes))
        return pair((first, first if lot.random() < 0.3 else other), background, lot)
    size = lot.choices(list(RADII), _SIZE_WEIGHTS)[0]
    place = lot.choices(list(PLACES), _PLACE_WEIGHTS)[0]
    return single(lot.choice(list(COLOURS)), lot.choice(shapes), size, place, background, lot)


@cache
def held_out() -> tuple[Scene, ...]:
    """The 200 scenes of the score, 150 of one thing and 50 of two; no picture for training has their key."""
    lot = random.Random(_HELD_OUT_SEED)
    looks = list(itertools.product(COLOURS, SHAPES))
    singles = list(itertools.product(looks, RADII, PLACES, BACKGROUNDS))
    pairs = list(itertools.product(looks, looks, BACKGROUNDS))
    return (
        *(
            single(colour, shape, size, place, ground)
            for (colour, shape), size, place, ground in lot.sample(singles, _HELD_OUT_SINGLES)
        ),
        *(pair((left, right), ground) for left, right, ground in lot.sample(pairs, _HELD_OUT_PAIRS)),
    )


@cache
def held_out_keys() -> frozenset[Key]:
    """The combinations that no picture for training shows."""
    return frozenset(scene.key for scene in held_out())
