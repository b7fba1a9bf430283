"""Networks and stored weights: what is fused is what was loaded, and what is stored is the sum."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.base import HeldWeight, Pair
from lib_accel.lora.fusion import Fuser, TunedOn
from lib_accel.lora.memory import Uploads
from lib_accel.lora.targets import LiveModels, Place
from lib_accel.storage.layer import StoredLayer
from lib_accel.storage.weights import Storage


def fuser_of(
    models: Mapping[str, nn.Module],
    storage: Storage,
    tuned: TunedOn = lambda device: None,
    lock: AbstractContextManager[Any] | None = None,
) -> Fuser:
    """A fuser for models of which some weights are stored, now or later; `tuned`, `lock`: see Fuser."""

    def hold(weight: nn.Parameter, copy: Callable[[Tensor], Tensor], uploads: Uploads) -> HeldWeight:
        layer = storage.layer_of(weight)
        return HeldWeight(weight, copy, uploads) if layer is None else HeldOriginal(layer, uploads)

    return Fuser(models, lambda models: Originals(models, storage), hold, tuned, lock)


class Originals(LiveModels):
    """The layers of models, the stored ones with the weights that they were loaded with."""

    def __init__(self, models: Mapping[str, nn.Module], storage: Storage) -> None:
        super().__init__(models)
        self._storage = storage

    def module(self, component: str, path: str) -> nn.Module | None:
        """As of LiveModels; a layer that is stored as it was loaded."""
        module = super().module(component, path)
        layer = None if module is None else self._storage.layer(module)
        loaded = None if layer is None else layer.as_loaded()
        return module if loaded is None else loaded

    def weight_now(self, place: Place) -> nn.Parameter | None:
        """As of LiveModels; of a stored weight, also inside an adapter of peft, what was loaded."""
        weight = super().weight_now(place)
        layer = self._storage.layer_of(weight)
        return weight if layer is None else layer.original


class HeldOriginal(HeldWeight):
    """What a stored weight was loaded as, which is the base of all that networks make of it."""

    def __init__(self, layer: StoredLayer, uploads: Uploads) -> None:
        super().__init__(layer.original, lambda original: original, uploads)
        self._layer = weakref.ref(layer)

    @property
    def base_bytes(self) -> int:
        """None: the base is the storage's."""
        return 0

    def is_pristine(self) -> bool:
        """Always: the base is the weight itself."""
        return True

    def device_to_join(self, pairs: Sequence[Pair]) -> None:
        """None: what is written is stored at once, in other memory."""

    def write(self, pairs: tuple[Pair, ...]) -> None:
        """Has base and `pairs` stored, summed and rounded as they would be in the weight."""
        layer = self._layer()
        assert layer is not None  # is_current was asked
        layer.write(lambda full: write_sum(full, self._base, self._terms(pairs, full.device)))
        self.pairs = pairs
