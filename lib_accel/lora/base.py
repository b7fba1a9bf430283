"""One live weight, its pristine bits, and what is fused into it."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.lora.delta import for_inpainting, lora_factors, tucker_down
from lib_accel.lora.formats import Layer
from lib_accel.lora.terms import Factors


class Pair(NamedTuple):
    """A network's layer and how much of it is wanted."""

    layer: Layer
    scale: float


class HeldWeight:
    """A weight that networks change in place: the Parameter, its storage and its device stay as they are."""

    def __init__(self, weight: nn.Parameter) -> None:
        """Copies the weight's bits to the CPU; they are what is pristine from now on."""
        self._weight = weakref.ref(weight)
        self._base = weight.detach().to("cpu", copy=True)
        self._version = _version(weight)
        self.pairs: tuple[Pair, ...] = ()

    @property
    def base_bytes(self) -> int:
        """Memory of the CPU that the pristine copy takes."""
        return self._base.numel() * self._base.element_size()

    def is_current(self, weight: nn.Parameter | None) -> bool:
        """Whether `weight` is the one that is held, and nobody else wrote to it since; a move is no write."""
        return (
            weight is not None
            and weight is self._weight()
            and (weight.dtype, weight.shape) == (self._base.dtype, self._base.shape)
            and _version(weight) == self._version
        )

    def has(self, pairs: Sequence[Pair]) -> bool:
        """Whether just these are fused, in this order."""
        return _target(self.pairs) == _target(pairs)

    def write(self, pairs: tuple[Pair, ...]) -> None:
        """Makes the weight its base with `pairs` fused into it, rounded once."""
        weight = self._weight()
        assert weight is not None  # is_current was asked
        # A weight that was made in inference mode can be written in it only.
        with torch.inference_mode(weight.is_inference()), torch.no_grad():
            if pairs:
                _fuse(weight, self._base, pairs)
            else:
                weight.copy_(self._base)
        self.pairs, self._version = pairs, _version(weight)


def _target(pairs: Sequence[Pair]) -> list[tuple[Hashable, float]]:
    return [(pair.layer.identity, pair.scale) for pair in pairs]


def _version(weight: Tensor) -> int | None:
    """How often the weight was written to, which torch counts except for inference tensors."""
    return None if weight.is_inference() else weight._version


def _fuse(weight: Tensor, base: Tensor, pairs: Sequence[Pair]) -> None:
    """Makes `weight` its base + the sum of the changes, in float32 or wider, rounded once to its dtype."""
    factors = [_factors(pair, base.shape, weight.device) for pair in pairs]
    up = torch.cat([each.up for each in factors], dim=1)
    down = torch.cat([each.down for each in factors])
    wide = torch.promote_types(base.dtype, torch.float32)
    in_place = weight.dtype == wide and weight.is_contiguous()  # half the time of a sum beside it
    total = weight if in_place else torch.empty(base.shape, dtype=wide, device=weight.device)
    # Moved in its own dtype: in a copy across devices torch would widen it on the CPU first.
    total.copy_(base.to(weight.device))
    # In place, which autocast leaves alone.
    total.flatten(1).addmm_(up.to(wide), down.to(wide))
    if not in_place:
        weight.copy_(total)


def _factors(pair: Pair, shape: Sequence[int], device: torch.device) -> Factors:
    layer = pair.layer
    down, up = layer.down.to(device), layer.up.to(device)
    if layer.mid is not None:
        down = tucker_down(layer.mid.to(device), down)
    if down.ndim == 4 and down.shape[1] != shape[1]:
        down = for_inpainting(down)
    return lora_factors(down, up, pair.scale * layer.alpha / layer.rank)
