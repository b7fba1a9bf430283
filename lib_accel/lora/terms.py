"""What a network changes in one weight, in forms that add up: delta.py makes, accumulate.py adds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Factors(NamedTuple):
    """The change `strength * up @ down`: up (out, rank), down (rank, in * height * width), of any dtype."""

    up: Tensor
    down: Tensor
    strength: float = 1.0


class Dense(NamedTuple):
    """The change `strength * delta`; delta has the weight's shape."""

    delta: Tensor
    strength: float


class Rewrite(NamedTuple):
    """The change `strength * delta(weight)`, where `weight` carries all terms before this one.

    delta: takes the weight in float32 or wider, its shape as it is, leaves it alone, and returns its like.
    """

    delta: Callable[[Tensor], Tensor]
    strength: float


Term = Factors | Dense | Rewrite
