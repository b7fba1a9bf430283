"""Says what a picture shows, by plain image analysis: no network, nothing learned."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib_accel.demo.train.drawing import Mask, Picture, draw, edges
from lib_accel.demo.train.scene import BACKGROUNDS, COLOURS, SHAPES, SUBJECT, single

_LEAST_SHARE = 0.012  # of the picture: smaller specks are no things
_BORDER = 2  # pixels of the frame that are background
_CLEAR_OF_BACKGROUND = 60.0  # distance in RGB
_HOLLOW = 0.06  # share of a thing that is enclosed background, from which it is an outline
_SIDE = 32  # of the templates


@dataclass(frozen=True)
class Seen:
    """One thing that was found, its centre in pixels."""

    colour: str
    shape: str
    style: str
    x: float
    y: float


@dataclass(frozen=True)
class Verdict:
    """What is in a picture, from left to right."""

    background: str
    things: tuple[Seen, ...]


def judge(picture: Picture) -> Verdict:
    """Background and things of a picture, uint8 of shape (height, width, 3)."""
    values = picture.astype(np.float32)
    ground = _ground(values)
    mask = np.linalg.norm(values - ground, axis=-1) > _CLEAR_OF_BACKGROUND
    least = _LEAST_SHARE * mask.size
    parts = [part for part in _parts(mask) if part.sum() >= least]
    things = sorted((_seen(values, part, ground) for part in parts), key=lambda thing: thing.x)
    return Verdict(_nearest(ground, BACKGROUNDS), tuple(things))


def edge_overlap(first: Picture, second: Picture) -> float:
    """Intersection over union of the edges of two pictures, each widened by one pixel to each side."""
    one, other = _widened(edges(first)), _widened(edges(second))
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 1.0


def _ground(values: NDArray[np.float32]) -> NDArray[np.float32]:
    frame = np.ones(values.shape[:2], np.bool_)
    frame[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    return np.asarray(np.median(values[frame], axis=0), np.float32)


def _seen(values: NDArray[np.float32], part: Mask, ground: NDArray[np.float32]) -> Seen:
    solid = part | _enclosed(part)
    rows, columns = np.nonzero(solid)
    hollow = 1 - part.sum() / solid.sum()
    return Seen(
        _colour(values, part, ground),
        _shape(solid),
        "outline" if hollow > _HOLLOW else "filled",
        float(columns.mean()),
        float(rows.mean()),
    )


def _colour(values: NDArray[np.float32], part: Mask, ground: NDArray[np.float32]) -> str:
    """The colour of the half of a thing that differs most from the background: edges are mixtures."""
    pixels = values[part]
    distance = np.linalg.norm(pixels - ground, axis=-1)
    return _nearest(np.median(pixels[distance >= np.median(distance)], axis=0), COLOURS)


def _nearest(value: NDArray[np.float32], table: dict[str, tuple[int, int, int]]) -> str:
    return min(table, key=lambda name: float(np.linalg.norm(value - np.asarray(table[name], np.float32))))


def _shape(solid: Mask) -> str:
    """The template that a silhouette, cut out and stretched to its size, overlaps most."""
    cut = _cut_out(solid)
    overlap = {
        shape: float((cut & template).sum() / (cut | template).sum())
        for shape, template in _templates().items()
    }
    return max(overlap, key=overlap.__getitem__)


@cache
def _templates() -> dict[str, Mask]:
    scenes = {shape: single("red", shape, "big", "middle", "white") for shape in (*SHAPES, SUBJECT)}
    masks = {shape: draw(scene)[..., 1] < 145 for shape, scene in scenes.items()}
    return {shape: _cut_out(mask) for shape, mask in masks.items()}


def _cut_out(mask: Mask) -> Mask:
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    image = Image.fromarray(box.astype(np.uint8) * 255).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image) >= 128


def _parts(mask: Mask) -> list[Mask]:
    """The connected regions of a mask; neighbours share a side."""
    left = mask.copy()
    parts = []
    for row, column in np.argwhere(mask):
        if left[row, column]:
            part = _flooded(left, [(int(row), int(column))])
            left &= ~part
            parts.append(part)
    return parts


def _enclosed(part: Mask) -> Mask:
    """What is not part of a region and cannot be reached from the frame without crossing it."""
    height, width = part.shape
    frame = [(row, column) for row in range(height) for column in (0, width - 1)]
    frame += [(row, column) for row in (0, height - 1) for column in range(width)]
    return ~part & ~_flooded(~part, frame)


def _flooded(mask: Mask, starts: list[tuple[int, int]]) -> Mask:
    """All of `mask` that is connected with the starts."""
    height, width = mask.shape
    reached = np.zeros_like(mask)
    queue: deque[tuple[int, int]] = deque()
    for place in starts:
        if mask[place] and not reached[place]:
            reached[place] = True
            queue.append(place)
    while queue:
        row, column = queue.popleft()
        for place in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= place[0] < height and 0 <= place[1] < width and mask[place] and not reached[place]:
                reached[place] = True
                queue.append(place)
    return reached


def _widened(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    height, width = mask.shape
    shifted = [padded[row : row + height, column : column + width] for row in range(3) for column in range(3)]
    return np.asarray(np.logical_or.reduce(shifted))
