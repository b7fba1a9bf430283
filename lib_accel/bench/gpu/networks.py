"""LoRAs on the models of the suite of GPUs, merged in place by our arithmetic as a webui's host does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.delta import lora_factors

RANK = 16
_SHARE = 0.05  # of a weight's size, by which one LoRA changes it


class _Held(NamedTuple):
    """A weight that LoRAs change, its pristine bits, and the factors of each LoRA: down and up."""

    weight: nn.Parameter
    base: Tensor
    factors: tuple[tuple[Tensor, Tensor], ...]


class Networks:
    """Some LoRAs of rank 16 on all linear layers and 1x1 convolutions of a UNet's transformers.

    Weights are known by themselves: those of a model that shares them are changed with it.
    """

    def __init__(self, unet: nn.Module, most: int) -> None:
        """`most`: how many LoRAs there are; none is worn at first."""
        self.worn = 0
        self._held: dict[int, _Held] = {}
        self._carried: dict[int, int] = {}
        source = torch.Generator().manual_seed(7)
        for layer in _layers(unet):
            weight = layer.weight
            pairs = tuple(_drawn(weight, source) for _ in range(most))
            self._held[id(weight)] = _Held(weight, weight.detach().clone(), pairs)
            self._carried[id(weight)] = 0

    @property
    def moved_bytes(self) -> int:
        """What must be read and written at least to change all the weights once: bases, and weights."""
        return sum(2 * held.base.numel() * held.base.element_size() for held in self._held.values())

    def wear(self, count: int) -> None:
        """Makes all weights carry the first `count` LoRAs; with 0 the pristine bits."""
        self.worn = count
        for name in self._held:
            self._write(name)

    def apply(self, layers: Sequence[nn.Module]) -> None:
        """Makes the weights of these layers carry what is worn, those that do not yet."""
        for layer in layers:
            name = id(getattr(layer, "weight", None))
            if name in self._held and self._carried[name] != self.worn:
                self._write(name)

    def merge_one_by_one(self, count: int) -> None:
        """As `wear`, but each LoRA added by itself in the weight's own dtype: what hosts do otherwise."""
        for name, held in self._held.items():
            with torch.no_grad():
                held.weight.copy_(held.base)
                for down, up in held.factors[:count]:
                    held.weight.add_((up.flatten(1) @ down.flatten(1)).view_as(held.weight))
            self._carried[name] = count
        self.worn = count

    def is_pristine(self) -> bool:
        """Whether all weights have the bits of the beginning."""
        return all(torch.equal(held.weight.detach(), held.base) for held in self._held.values())

    def _write(self, name: int) -> None:
        held = self._held[name]
        terms = [lora_factors(down, up, 1.0) for down, up in held.factors[: self.worn]]
        write_sum(held.weight, held.base, terms)
        self._carried[name] = self.worn


def _layers(unet: nn.Module) -> Iterator[Any]:
    for module in unet.modules():
        if type(module).__name__ == "SpatialTransformer":
            yield from (each for each in module.modules() if isinstance(each, (nn.Linear, nn.Conv2d)))


def _drawn(weight: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    outer, inner = weight.shape[:2]
    tail = [1] * (weight.dim() - 2)
    size = _SHARE / (inner * RANK) ** 0.5  # of a weight drawn as `randomized` does
    down = torch.randn(RANK, inner, *tail, generator=source)
    up = torch.randn(outer, RANK, *tail, generator=source) * size
    return down.to(weight.device, weight.dtype), up.to(weight.device, weight.dtype)
