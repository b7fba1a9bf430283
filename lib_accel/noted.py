"""Calls of blocks whose weights may be laid in another way, remembered without what they hold."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.blocks.operators.operator import Arguments
from lib_accel.blocks.operators.shell import Shell

_MOST_CALLS = 8  # of one block, that differ in size


class NotedBlock:
    """The calls of one block, known by one of its weights."""

    __slots__ = ("calls", "is_settled", "told", "weight")

    def __init__(self, weight: Tensor) -> None:
        self.weight = weakref.ref(weight)
        self.calls: dict[Hashable, list[Any]] = {}
        self.told: set[Hashable] = set()  # which of the calls are to be timed by somebody who knows
        self.is_settled = False  # whether it is decided how the weights of its model lie

    def note(self, key: Hashable, args: Arguments) -> bool:
        """Remembers a call with another key; whether it is told for the first time."""
        if key in self.told or (key not in self.calls and len(self.calls) >= _MOST_CALLS):
            return False
        self.told.add(key)
        if key not in self.calls:
            self.calls[key] = list(map(_without_memory, args))
        return True

    def calls_on(self, device: torch.device) -> list[Arguments]:
        """The arguments of those on a device, with tensors that have no memory but for the weights."""
        self.calls = {key: args for key, args in list(self.calls.items()) if not any(map(is_dead, args))}
        return [tuple(map(_alive, args)) for args in self.calls.values() if args[0].device == device]


def is_dead(value: Any) -> bool:
    """Whether it is a reference to what is gone."""
    return isinstance(value, weakref.ref) and value() is None


def _without_memory(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return weakref.ref(value)
    return Shell.like(value) if isinstance(value, Tensor) else value


def _alive(value: Any) -> Any:
    return value() if isinstance(value, weakref.ref) else value
