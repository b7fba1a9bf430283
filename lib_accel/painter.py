"""What warm-up and benchmark need of the program that draws pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from lib_accel.errors import TaskError

_LEAST_SIDE, _MOST_SIDE = 64, 2048
_SIDE_STEP = 8
_MOST_BATCH, _MOST_STEPS = 16, 150


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A picture to be drawn and thrown away. Sides are in pixels.

    Raises TaskError if a number is out of range.
    """

    width: int = 512
    height: int = 512
    batch_size: int = 1
    steps: int = 8

    def __post_init__(self) -> None:
        for name, least, most in (
            ("width", _LEAST_SIDE, _MOST_SIDE),
            ("height", _LEAST_SIDE, _MOST_SIDE),
            ("batch_size", 1, _MOST_BATCH),
            ("steps", 1, _MOST_STEPS),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise TaskError(f"{name}: got {value!r}, expected a whole number from {least} to {most}")
        for name in ("width", "height"):
            if (value := getattr(self, name)) % _SIDE_STEP:
                raise TaskError(f"{name}: got {value}, expected a multiple of {_SIDE_STEP}")


@dataclass(frozen=True)
class Painted:
    """How long a picture took."""

    seconds: float
    step_ms: float | None  # median of a step after the first; None if too few were seen


class Painter(Protocol):
    """The program, while nobody else draws."""

    def session(self, name: str, pictures: int) -> AbstractContextManager[None]:
        """Waits for its turn, and has the program to itself. It shows `name`, and `pictures` to come."""

    def tell(self, stage: str) -> None:
        """Shows what is being done."""

    def draw(self, wanted: Wanted, prompt: str = "", *, is_accelerated: bool = True) -> Painted:
        """Draws a picture. Raises TaskCancelled if the program's user interrupted it."""

    def random_loras(self, count: int) -> AbstractContextManager[Sequence[str]]:
        """What to write into a prompt for each of `count` LoRAs by lot, which fit the loaded checkpoint."""

    def device(self) -> str:
        """What it draws on, in words."""
