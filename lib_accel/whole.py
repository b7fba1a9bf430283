"""Whether a whole call of a model may be one recording: nobody but us has a hand in it.

A unit is watched where it is bound. Here it is what is around the units: the model, its lists and containers,
its own layers, and the units as far as their callers see them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lib_accel.audit import ClassWatch, Snapshot
from lib_accel.errors import LayoutError
from lib_accel.layouts.entries import Unit
from lib_accel.layouts.reading import Trust, class_name, demand_clean
from lib_accel.layouts.slots import LiveWeights, Slot

_serials = itertools.count()

# What every nn.Module has; what of it matters is watched otherwise.
_OF_MODULE = frozenset(vars(nn.Module()))

# What the Lora extension of webuis writes down on layers whose weights it has merged.
_BOOKKEEPING = "network_"

_VALUES = (type(None), bool, int, float, str, torch.dtype)


def _mark(value: Any) -> Hashable:
    """What a value is known by: what it says, or else where it is, since who holds it may hold the model."""
    kind = type(value)
    if kind in _VALUES:
        return kind, value
    if kind in (list, tuple) and all(type(each) in _VALUES for each in value):
        return kind, tuple(value)
    if kind is dict and all(type(each) in _VALUES for each in value.values()):
        return kind, tuple(value.items())
    return id(value)


def _demand_own(module: nn.Module, model: nn.Module) -> None:
    """Raises LayoutError for what another package put among the layers: it may read whatever it likes."""
    package = type(module).__module__.split(".")[0]
    if package not in ("torch", type(model).__module__.split(".")[0]):
        raise LayoutError(f"{class_name(type(module))} is around the blocks of {type(model).__name__}")


class Frame:
    """A model without the insides of its units, as it was when it was looked at. Holds the model weakly."""

    def __init__(
        self, model: nn.Module, units: Mapping[nn.Module, Unit], trust: Trust, watch: ClassWatch
    ) -> None:
        """`units`: those of the model."""
        self.units = dict(units)
        self.serial = next(_serials)
        self.failure: str | None = None  # why calls of the model are not to be recorded as a whole
        self.calls = 0  # in which it held
        self.brief = 0  # how many before it, one after the other, held for few
        inside = {id(each) for unit in units for each in unit.modules()} - {id(unit) for unit in units}
        around = [each for each in model.modules() if id(each) not in inside]
        self._model = weakref.ref(model)
        self._others = [each for each in around if each is not model]
        self._snapshot = Snapshot(self._others, model, watch)
        self._attributes = self._current_attributes(model)
        self._weights = LiveWeights(
            Slot(held, name) for each in around for held in (each._parameters, each._buffers) for name in held
        )
        try:
            for each in around:
                _demand_own(each, model)
                demand_clean(each, trust)
        except LayoutError as error:
            self.failure = str(error)

    def holds(self) -> bool:
        """Whether the model around its units is as it was."""
        model = self._model()
        return (
            model is not None
            and not (model._forward_hooks or model._forward_pre_hooks)
            and self._snapshot.matches()
            and self._current_attributes(model) == self._attributes
        )

    def _current_attributes(self, model: nn.Module) -> list[Hashable]:
        """What the model's own loop may read: values as such, other things by which they are."""
        return [
            _mark(value)
            for each in (model, *self._others)
            for name, value in vars(each).items()
            if name not in _OF_MODULE and not name.startswith(_BOOKKEEPING)
        ]

    def weights(self) -> Sequence[Any]:
        """The weights of the model's own layers, as they are now."""
        return self._weights.read()
