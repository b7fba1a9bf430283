"""One live weight, its pristine bits, and what is fused into it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.blocks.operators.operator import Tuned
from lib_accel.device import autocast_dtype, autocast_off
from lib_accel.lora.groups import Merge
from lib_accel.lora.kinds import term
from lib_accel.lora.memory import Uploads
from lib_accel.lora.network import Layer
from lib_accel.lora.shapes import MAGNITUDES
from lib_accel.lora.terms import Term


class Pair(NamedTuple):
    """A network's layer and how much of it is wanted."""

    layer: Layer
    scale: float
    dyn_dim: int | None = None


class HeldWeight:
    """A weight that networks change in place: the Parameter, its storage and its device stay as they are."""

    def __init__(self, weight: nn.Parameter, copy: Callable[[Tensor], Tensor], uploads: Uploads) -> None:
        """Keeps what `copy` makes of the weight: its bits are what is pristine from now on."""
        self._weight, self._uploads = weakref.ref(weight), uploads
        self._base = copy(weight.detach())
        self._version = _version(weight)
        self.pairs: tuple[Pair, ...] = ()
        self.way: str | None = None  # what wrote them, None for plain torch
        self.tuned: Tuned | None = None  # what had chosen that

    @property
    def base_bytes(self) -> int:
        """Memory that the pristine copy takes."""
        return self._base.numel() * self._base.element_size()

    def is_current(self, weight: nn.Parameter | None) -> bool:
        """Whether `weight` is the one that is held, and nobody else wrote to it since; a move is no write."""
        return (
            weight is not None
            and weight is self._weight()
            and weight.dtype == self._base.dtype
            and weight.shape == self._base.shape
            and _version(weight) == self._version
        )

    def is_pristine(self) -> bool:
        """Whether the weight has the bits that were kept: others may write past the count of writes."""
        weight = self._weight()
        return weight is not None and torch.equal(weight.detach().to(self._base.device), self._base)

    def has(self, pairs: Sequence[Pair]) -> bool:
        """Whether just these are fused, in this order."""
        return self.pairs == pairs or _target(self.pairs) == _target(pairs)

    def device_to_join(self, pairs: Sequence[Pair]) -> torch.device | None:
        """Where others may be written together with it, of which LoRAs are all; None if it goes alone."""
        weight = self._weight()
        is_sum = bool(pairs) and all(_is_product(pair.layer) for pair in pairs)
        return weight.device if weight is not None and is_sum else None

    def merge(self, pairs: Sequence[Pair]) -> Merge:
        """What makes the weight its base with `pairs` fused into it; who writes it tells `note`."""
        weight = self._weight()
        assert weight is not None  # is_current was asked
        if self._base.device.type != "cpu" and self._base.device != weight.device:
            self._base = self._base.to(weight.device)  # who moves a model off a GPU wants its memory
        return Merge(weight, self._base, self._terms(pairs, weight.device))

    def note(self, pairs: tuple[Pair, ...], way: str | None = None, tuned: Tuned | None = None) -> None:
        """The weight was made its base with `pairs`: so far all its writes are ours."""
        weight = self._weight()
        assert weight is not None
        self.pairs, self.way, self.tuned, self._version = pairs, way, tuned, _version(weight)

    def write(self, pairs: tuple[Pair, ...]) -> None:
        """Makes the weight its base with `pairs` fused into it by plain torch, rounded once."""
        self.merge(pairs).write()
        self.note(pairs)

    def _terms(self, pairs: Sequence[Pair], device: torch.device) -> list[Term]:
        if not pairs:
            return []
        is_off = autocast_dtype(device.type) is None  # to turn it off takes as long as all of a LoRA's term
        with nullcontext() if is_off else autocast_off(device.type):
            return [
                term(layer, self._uploads.on(device, layer), self._base.shape, scale=scale, dyn_dim=dyn_dim)
                for layer, scale, dyn_dim in pairs
            ]


def _is_product(layer: Layer) -> bool:
    """Whether all that it adds to a weight is the product of two factors: a LoRA, and no DoRA."""
    return layer.kind == "LoRA" and not MAGNITUDES & layer.tensors.keys()


def _target(pairs: Sequence[Pair]) -> list[tuple[Hashable, float, int | None]]:
    return [(pair.layer.identity, pair.scale, pair.dyn_dim) for pair in pairs]


def _version(weight: Tensor) -> int | None:
    """How often the weight was written to, which torch counts except for inference tensors."""
    return None if weight.is_inference() else weight._version
