"""English for a scene: all of it, or as much as somebody would say."""

from __future__ import annotations

import random

from lib_accel.demo.train.scene import SUBJECT, SUBJECT_WORD, Scene, Thing

_OPENINGS = ("a picture of", "a drawing of")
_OPENING_SHARE = 0.1
_SIZE_SHARE, _PLACE_SHARE, _BACKGROUND_SHARE = 0.5, 0.5, 0.7
_COLOUR_SHARE, _SHAPE_SHARE = 0.95, 0.95  # else the caption leaves it to the model


def caption(scene: Scene, lot: random.Random | None = None) -> str:
    """The scene in words. Without `lot` every attribute is told; with it some are left out by lot."""
    words = _pair(scene) if len(scene.things) == 2 else _single(scene, lot)
    if _told(lot, _BACKGROUND_SHARE):
        words = f"{words} on a {scene.background} background"
    if lot is not None and lot.random() < _OPENING_SHARE:
        words = f"{lot.choice(_OPENINGS)} {words}"
    return words


def shapeless(scene: Scene) -> str:
    """Colours and background alone: what a ControlNet must find in its hint is not told."""
    things = " and ".join(_with_article(f"{thing.colour} shape") for thing in scene.things)
    return f"{things} on a {scene.background} background"


def _single(scene: Scene, lot: random.Random | None) -> str:
    (thing,) = scene.things
    size = scene.size if _told(lot, _SIZE_SHARE) else ""
    colour = thing.colour if _told(lot, _COLOUR_SHARE) else ""
    shape = _noun(thing) if _told(lot, _SHAPE_SHARE) else "shape"
    words = _with_article(" ".join(word for word in (size, colour, shape) if word))
    if _told(lot, _PLACE_SHARE):
        words += " in the middle" if scene.place == "middle" else f" at the {scene.place}"
    return words


def _pair(scene: Scene) -> str:
    left, right = scene.things
    if (left.colour, left.shape) == (right.colour, right.shape):
        return f"two {left.colour} {_noun(left)}s"
    return " and ".join(_with_article(f"{thing.colour} {_noun(thing)}") for thing in (left, right))


def _with_article(words: str) -> str:
    return f"an {words}" if words.startswith("orange") else f"a {words}"


def _noun(thing: Thing) -> str:
    return SUBJECT_WORD if thing.shape == SUBJECT else thing.shape


def _told(lot: random.Random | None, share: float) -> bool:
    return lot is None or lot.random() < share
