"""One live weight, its pristine bits, and what is fused into it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.device import autocast_off
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.kinds import term
from lib_accel.lora.memory import Uploads
from lib_accel.lora.network import Layer
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

    def write(self, pairs: tuple[Pair, ...]) -> None:
        """Makes the weight its base with `pairs` fused into it, rounded once."""
        weight = self._weight()
        assert weight is not None  # is_current was asked
        if self._base.device.type != "cpu" and self._base.device != weight.device:
            self._base = self._base.to(weight.device)  # who moves a model off a GPU wants its memory
        # A weight that was made in inference mode can be written in it only.
        with torch.inference_mode(weight.is_inference()), torch.no_grad():
            write_sum(weight, self._base, self._terms(pairs, weight.device))
        self.pairs, self._version = pairs, _version(weight)

    def _terms(self, pairs: Sequence[Pair], device: torch.device) -> list[Term]:
        if not pairs:
            return []
        with autocast_off(device.type):
            return [
                term(layer, self._uploads.on(device, layer), self._base.shape, scale=scale, dyn_dim=dyn_dim)
                for layer, scale, dyn_dim in pairs
            ]


def _target(pairs: Sequence[Pair]) -> list[tuple[Hashable, float, int | None]]:
    return [(pair.layer.identity, pair.scale, pair.dyn_dim) for pair in pairs]


def _version(weight: Tensor) -> int | None:
    """How often the weight was written to, which torch counts except for inference tensors."""
    return None if weight.is_inference() else weight._version
