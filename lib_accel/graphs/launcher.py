"""What can record the work of a function and do it again without running the function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor


class Recording(Protocol):
    """The work of one function: it reads and writes the memory that it was recorded with, no other."""

    @property
    def outputs(self) -> Sequence[Tensor]:
        """What the function returned. Holds until any recording of the same launcher is replayed."""

    @property
    def size_bytes(self) -> int:
        """By how much the launcher's memory has grown for it."""

    def replay(self) -> None:
        """Does the work again, in the order of the current stream."""

    def drop(self) -> None:
        """Gives its memory back to the launcher; it cannot be replayed any more."""


class Launcher(Protocol):
    """Recordings on one type of device. They share memory, so only one may be at work at a time."""

    def turn(self, device: torch.device) -> AbstractContextManager[bool]:
        """Inside the block recordings on the device are the caller's; False, at once, if another has them."""

    def record(
        self, function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor], device: torch.device
    ) -> Recording:
        """Records a function of `inputs`, which are memory that is written before each replay.

        What the function does has been done on this thread before. Raises CaptureError if something in it
        cannot be recorded, or what torch raises if there is no memory for it.
        """

    def wait(self, device: torch.device) -> None:
        """Until all work on the device is done."""

    def largest_bytes(self, device: torch.device) -> int:
        """What recordings may take of the device, whatever is asked for."""

    def fault(self) -> str | None:
        """Why nothing can be recorded any more in this process, or None."""

    def is_recording(self, device: torch.device) -> bool:
        """Whether somebody, anybody, records what the current thread does."""
