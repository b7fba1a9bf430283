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
from lib_accel.lora.network import Layer
from lib_accel.lora.terms import Term

_LEAST_LEFT = 4 * 2**30  # bytes of the GPU's memory that pictures of one megapixel may need


class Pair(NamedTuple):
    """A network's layer and how much of it is wanted."""

    layer: Layer
    scale: float
    dyn_dim: int | None = None


class HeldWeight:
    """A weight that networks change in place: the Parameter, its storage and its device stay as they are."""

    def __init__(self, weight: nn.Parameter, copy: Callable[[Tensor], Tensor]) -> None:
        """Keeps what `copy` makes of the weight: its bits are what is pristine from now on."""
        self._weight = weakref.ref(weight)
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

    def has(self, pairs: Sequence[Pair]) -> bool:
        """Whether just these are fused, in this order."""
        return self.pairs == pairs or _target(self.pairs) == _target(pairs)

    def write(self, pairs: tuple[Pair, ...]) -> None:
        """Makes the weight its base with `pairs` fused into it, rounded once."""
        weight = self._weight()
        assert weight is not None  # is_current was asked
        if self._base.device.type != "cpu" and self._base.device != weight.device:
            self._base = self._base.to(
                weight.device
            )  # the model left the GPU, whose memory is wanted for others
        # A weight that was made in inference mode can be written in it only.
        with torch.inference_mode(weight.is_inference()), torch.no_grad():
            write_sum(weight, self._base, self._terms(pairs, weight.device))
        self.pairs, self._version = pairs, _version(weight)

    def _terms(self, pairs: Sequence[Pair], device: torch.device) -> list[Term]:
        if not pairs:
            return []
        with autocast_off(device.type):
            return [
                term(layer, self._base.shape, device, scale=scale, dyn_dim=dyn_dim)
                for layer, scale, dyn_dim in pairs
            ]


def _target(pairs: Sequence[Pair]) -> list[tuple[Hashable, float, int | None]]:
    return [(pair.layer.identity, pair.scale, pair.dyn_dim) for pair in pairs]


def _version(weight: Tensor) -> int | None:
    """How often the weight was written to, which torch counts except for inference tensors."""
    return None if weight.is_inference() else weight._version


# Where the pristine bits are kept.


def copier(
    device: torch.device,
    needed: int,
    memory: Callable[[torch.device], tuple[int, int]] = torch.cuda.mem_get_info,
) -> Callable[[Tensor], Tensor]:
    """What copies weights of a device, of `needed` bytes together, to where their copies are to stay.

    memory: tells how many bytes of a GPU are free, and how many it has.
    """
    if device.type != "cuda":
        return _to_cpu
    return torch.clone if leaves_enough(needed, *memory(device)) else _to_pinned


def leaves_enough(needed: int, free: int, total: int) -> bool:
    """Whether a GPU with so many bytes free, of a total, has room for copies beside what pictures take."""
    return free - needed >= max(_LEAST_LEFT, total // 4)


def _to_cpu(weight: Tensor) -> Tensor:
    return weight.to("cpu", copy=True)


def _to_pinned(weight: Tensor) -> Tensor:
    """In memory that a GPU reads at full speed; in any other if the system has no more of it to give."""
    try:
        return torch.empty_like(weight, device="cpu", pin_memory=True).copy_(weight)
    except RuntimeError:
        return _to_cpu(weight)
