"""Where the weights of a block are in its live module.

A slot is a module's dictionary of parameters and a name in it. Bound blocks keep slots, not tensors: the
tensors are looked up at every call, so an in-place merge, a replaced Parameter or a move to another device
needs no news.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import getitem
from typing import Any, NamedTuple


class Slot(NamedTuple):
    """One weight of one live module; the weight may be None, as a missing bias is."""

    parameters: dict[str, Any]
    name: str


class LiveWeights:
    """Reads the tensors of many slots at once."""

    __slots__ = ("_dicts", "_names")

    def __init__(self, slots: Iterable[Slot]) -> None:
        ordered = list(slots)
        self._dicts = [slot.parameters for slot in ordered]
        self._names = [slot.name for slot in ordered]

    def read(self) -> Sequence[Any]:
        """The tensors (None for a missing bias) that the modules hold now, in the order of the slots."""
        return list(map(getitem, self._dicts, self._names))
