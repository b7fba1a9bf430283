"""Pictures of scenes, filled or outlined, and the edges in a picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lib_accel.demo.train.scene import BACKGROUNDS, COLOURS, SIDE, Scene, Thing

Picture = NDArray[np.uint8]  # (height, width, 3), RGB
Mask = NDArray[np.bool_]  # (height, width)

LINE = 3.0  # width of an outline, pixels

_FINER = 4  # drawn this much larger, then averaged: soft edges
_EDGE = 36  # least difference of two neighbours, of 255, that is an edge
_STAR_WAIST = 0.45
_CURVE_STEPS = 60


def draw(scene: Scene, style: str = "filled", line: float = LINE) -> Picture:
    """The scene as uint8 of shape (64, 64, 3), an outline `line` pixels wide. Raises KeyError for a word that
    is in no table."""
    image = Image.new("RGB", (SIDE * _FINER,) * 2, BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        STYLES[style](pen, thing, line)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def _filled(pen: ImageDraw.ImageDraw, thing: Thing, _line: float) -> None:
    pen.polygon(_corners(thing, thing.radius), fill=COLOURS[thing.colour])


def _outlined(pen: ImageDraw.ImageDraw, thing: Thing, line: float) -> None:
    corners = _corners(thing, thing.radius - line / 2)
    pen.line(corners + corners[:2], fill=COLOURS[thing.colour], width=round(line * _FINER), joint="curve")


def _corners(thing: Thing, radius: float) -> list[tuple[float, float]]:
    """The outline on the finer grid."""
    points = _OUTLINES[thing.shape]()
    return [((thing.x + x * radius) * _FINER, (thing.y + y * radius) * _FINER) for x, y in points]


def _turned(count: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """`count` corners around the centre, clockwise from the top, at these radii in turn."""
    angles = (2 * math.pi * number / count for number in range(count))
    return [
        (radii[number % len(radii)] * math.sin(angle), -radii[number % len(radii)] * math.cos(angle))
        for number, angle in enumerate(angles)
    ]


def _square() -> list[tuple[float, float]]:
    return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]


def _triangle() -> list[tuple[float, float]]:
    return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]


def _heart() -> list[tuple[float, float]]:
    angles = (2 * math.pi * number / _CURVE_STEPS for number in range(_CURVE_STEPS))
    return [
        (
            math.sin(angle) ** 3,
            -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle))
            / 16,
        )
        for angle in angles
    ]


STYLES = {"filled": _filled, "outline": _outlined}

_OUTLINES: dict[str, Callable[[], list[tuple[float, float]]]] = {
    "circle": lambda: _turned(_CURVE_STEPS, (1.0,)),
    "square": _square,
    "triangle": _triangle,
    "star": lambda: _turned(10, (1.0, _STAR_WAIST)),
    "heart": _heart,
}


def edges(picture: Picture) -> Mask:
    """Where a pixel differs clearly from its right or lower neighbour, in any channel; (height, width)."""
    values = picture.astype(np.int16)
    found = np.zeros(picture.shape[:2], np.bool_)
    found[:, :-1] |= np.abs(np.diff(values, axis=1)).max(-1) > _EDGE
    found[:-1] |= np.abs(np.diff(values, axis=0)).max(-1) > _EDGE
    return found


def hint(picture: Picture) -> Picture:
    """What a ControlNet is shown of a picture: its edges, white on black; same shape."""
    return np.repeat(edges(picture)[..., None], 3, -1).astype(np.uint8) * 255
