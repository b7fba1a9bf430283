"""Convolution weights that lie in memory with their channels last, and back again.

The Parameter stays, with its values to the bit, its count of writes and all that others hang on it; new is
only where it lies and in which order. So a merge in place, an undo of one and a move to another device go on
as before. A weight that lies both ways at once, as those of 1x1 do, is left as it is: nothing would change.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.blocks.operators import layout
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.way import SHARED, Piece, Way, as_made, modules_of, parameters, share, why_none

OF_THE_HOST = "the host has laid its weights channels last itself"


def convolution_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of its two-dimensional convolutions, each once."""
    found: dict[int, nn.Parameter] = {}
    for module in modules_of(model):
        weight = module._parameters.get("weight") if isinstance(module, nn.Conv2d) else None
        if weight is not None:
            found[id(weight)] = weight
    return list(found.values())


def is_first(weight: Tensor) -> bool:
    """Whether it lies channels first, and not channels last too."""
    return weight.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last)


def is_last(weight: Tensor) -> bool:
    """Whether it lies channels last, and not channels first too."""
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def why_not(weights: Sequence[nn.Parameter], ours: Collection[int] = ()) -> str | None:
    """Why these weights are not to be turned, or None; `ours`: ids of those that we have turned."""
    if reason := why_none(weights):
        return reason
    if any(is_last(weight) and id(weight) not in ours for weight in weights):
        return OF_THE_HOST
    if any(not (weight.is_contiguous() or is_last(weight)) for weight in weights):
        return "its weights are views"
    return SHARED if share(weights) else None


class Turned:
    """Weights of one model that were turned channels last. Holds them weakly (way.Laid)."""

    def __init__(self) -> None:
        self._weights: list[weakref.ref[Any]] = []

    def ids(self) -> set[int]:
        """Of those that still lie so."""
        return {id(weight) for weight in map(_alive, self._weights) if weight is not None}

    def mend(self) -> int:
        """Each weight is turned for itself: nothing is left half."""
        return 0

    def lay(self, pieces: Sequence[Piece]) -> int:
        """Turns those that lie channels first, one at a time: it needs memory for one more. How many it did.

        What it raises for lack of memory leaves some turned, which `put_back` knows.
        """
        count = 0
        for weight in parameters(pieces):
            if is_first(weight):
                _lay(weight, torch.channels_last)
                self._weights.append(weakref.ref(weight))
                count += 1
        return count

    def put_back(self) -> int:
        """Lays channels first what was turned, is still there and still lies so. How many it did.

        Those for which there is no memory stay turned until the next time.
        """
        turned, self._weights = self._weights, []
        count = 0
        for reference in turned:
            weight = _alive(reference)
            if weight is None:
                continue
            try:
                _lay(weight, torch.contiguous_format)
                count += 1
            except OUT_OF_MEMORY:
                self._weights.append(reference)
        return count


def _alive(reference: weakref.ref[Any]) -> Any:
    """The weight, if it still lies as it was turned."""
    weight = reference()
    return None if weight is None or not is_last(weight) else weight


def _lay(weight: nn.Parameter, memory_format: torch.memory_format) -> None:
    """New memory for the same values."""
    with as_made(weight):
        weight.data = weight.detach().contiguous(memory_format=memory_format)


CHANNELS_LAST = Way(
    question=layout.RESIDUAL_LAYOUT,
    code=layout.CHANNELS_LAST,
    kept_as="memory format",
    parts="residual blocks",
    spoken=("channels first", "channels last"),
    known_by=layout.CONV_IN,
    key=layout.key_of,
    calls=layout.calls,
    find=lambda model: [(weight,) for weight in convolution_weights(model)],
    why_not=lambda pieces, ours: why_not(parameters(pieces), ours),
    by_others=OF_THE_HOST,
    laid=Turned,
)
