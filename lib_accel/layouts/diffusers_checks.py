"""What an instance of a diffusers class must be, and be called with, so that our functions do the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lib_accel.errors import LayoutError
from lib_accel.layouts.reading import Candidate, Reading, Trust

MODELS = "diffusers.models"


def single(kind: str, read: Callable[[Any, Trust], Reading]) -> Callable[[nn.Module, Trust], list[Candidate]]:
    """The one candidate of a unit that is itself a block of this kind."""
    return lambda module, trust: [Candidate(kind, lambda: read(module, trust))]


def demand_values(module: Any, *expected: tuple[str, Any]) -> None:
    """Raises LayoutError unless each attribute that the module has is as expected."""
    for name, value in expected:
        found = getattr(module, name, value)
        if found is not value and found != value:
            raise LayoutError(f"{type(module).__name__} with {name}={_shown(found)}, expected {value}")


def _shown(value: Any) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else str(value)


def demand_unset(kwargs: Mapping[str, Any], owner: str) -> None:
    """Raises LayoutError if a call of `owner` gives any of these arguments."""
    for name, value in kwargs.items():
        if value is not None:
            raise LayoutError(f"{owner} is called with {name}")
