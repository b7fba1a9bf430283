"""What warm-up and benchmark need of the program that draws pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from lib_accel.errors import TaskError

# From and to; the page and the API ask for nothing else.
SIDES, SIDE_STEP = (64, 2048), 8
BATCHES = (1, 16)
STEPS = (1, 150)
TIMED_STEPS = (6, 150)  # fewer have no steps after the first ones to take the median of


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
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise TaskError(f"{name}: got {value!r}, expected a whole number from {least} to {most}")
        for name in ("width", "height"):
            if (value := getattr(self, name)) % SIDE_STEP:
                raise TaskError(f"{name}: got {value}, expected a multiple of {SIDE_STEP}")


_LIMITS = {"width": SIDES, "height": SIDES, "batch_size": BATCHES, "steps": STEPS}


@dataclass(frozen=True)
class Painted:
    """How long a picture took."""

    seconds: float
    step_ms: float | None  # median of a step after the first; None if too few were seen


class Painter(Protocol):
    """The program, while nobody else draws."""

    def session(self, name: str, pictures: int, check: Callable[[], None]) -> AbstractContextManager[None]:
        """Waits for its turn, and has the program to itself. It shows `name`, and `pictures` to come.

        check: is called now and then while it waits, and ends that by what it raises.
        """

    def tell(self, stage: str) -> None:
        """Shows what is being done."""

    def interrupt(self) -> None:
        """Ends the picture that is being drawn for a task; nobody else's."""

    def draw(self, wanted: Wanted, prompt: str = "", *, is_accelerated: bool = True) -> Painted:
        """Draws a picture, with acceleration as the user has set it, or without.

        Raises TaskCancelled if the program's user interrupted it, and TaskError if something was changed
        meanwhile, so that it is not of the same kind as the picture before.
        """

    def random_loras(self, count: int) -> AbstractContextManager[Sequence[str]]:
        """What to write into a prompt for each of `count` LoRAs by lot, which fit the loaded checkpoint."""

    def device(self) -> torch.device:
        """What it draws on."""
