"""A picture to ask for, and what it must be like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .kit.client import DEFAULTS
from .outcome import CLEAN, Speed


@dataclass(frozen=True)
class Unit:
    """One ControlNet unit; its hint is an outline, or a coloured scene, of the size of the picture."""

    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    turned: bool = False
    coloured: bool = False


@dataclass(frozen=True)
class Picture:
    """One request for pictures; the same on both servers, but for ``accel``, which only ours understands.

    ``moves`` and ``same`` name an earlier picture of the row, from which this one must differ, or not.
    """

    label: str
    speed: Speed = CLEAN
    moves: str = ""
    same: str = ""
    units: tuple[Unit, ...] = ()
    scripts: dict[str, list[Any]] = field(default_factory=dict)  # arguments of others, by the script's title
    image: bool = False  # img2img
    mask: bool = False  # of the left half
    accel: bool | None = None
    fails: bool = False  # the server must answer with an error, the same on both
    runs: tuple[str, ...] = ()  # keys of runs.PARTS, of which something must have run directly
    fields: dict[str, Any] = field(default_factory=dict)


def picture(label: str, **given: Any) -> Picture:
    """A picture; what is no field of Picture goes into the request."""
    own = {key: given.pop(key) for key in tuple(given) if key in Picture.__dataclass_fields__}
    return Picture(label, fields=given, **own)


def loras(*networks: str, text: str = DEFAULTS["prompt"]) -> str:
    """Prompt with networks, each given as ``name`` or ``name:weights``; the weight is 0.8 unless given."""
    tags = (name if ":" in name else f"{name}:0.8" for name in networks)
    return " ".join([text, *(f"<lora:{tag}>" for tag in tags)])


def unit(model: str = "tiny_cn_a", *, turned: bool = False, coloured: bool = False, **fields: Any) -> Unit:
    """A ControlNet unit; ``fields`` are those of its API."""
    return Unit(model, fields, turned, coloured)


BASE = Picture("base")
AGAIN = Picture("base again", same="base")
