"""A network as it was read: layers of one of many kinds, by the names of what they change."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lib_accel.errors import AccelError


class Multiple(NamedTuple):
    """Any multiple of a length."""

    of: int


Shape = tuple[int | Multiple | None, ...]
"""The shape of a weight, as far as a network's tensors tell; None is any length. Two are the outputs and all
inputs of a kernel in a row; four are (out, in, height, width), of which a linear layer's last two are 1."""


class LoraError(AccelError):
    """A LoRA cannot be read, or networks cannot be fused into these models as they are."""


class Key(NamedTuple):
    """Which parameter of a model a layer of a network is for."""

    component: str  # "unet", "text_encoder" or "text_encoder_2"
    path: str  # in that component, flat: down_blocks_0_attentions_0_proj_in
    spelled: str  # as the file has it, without the tensor's role
    parameter: str = "weight"  # or "bias"


@dataclass(frozen=True, eq=False)
class Layer:
    """What a network changes in one parameter: the tensors of one of `kinds.KINDS`, in the file's own dtype.

    tensors: by their roles, which `spelling.py` lists. alpha / rank is the strength of the change, for all
    kinds but the rotations: there alpha is the limit of OFT and BOFT, or the terms of the series of peft's.
    Layers of one place with equal `identity` change it in the same way, as long as one of them is kept.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    alpha: float
    rank: int  # 1 for kinds without
    shape: Shape  # of the weight that it is for
    identity: Hashable

    @property
    def strength(self) -> float:
        """What a change with alpha and rank is multiplied by."""
        return self.alpha / self.rank

    @property
    def size_bytes(self) -> int:
        """Memory that its tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


@dataclass(frozen=True, eq=False)
class Network:
    """A LoRA, or a network of another kind, as it was read."""

    name: str
    layers: Mapping[Key, Layer]
    ignored: tuple[str, ...] = ()  # tensors that belong to no layer
    family: str | None = None  # what it was made for by its header: "SD1", "SD2", "SDXL" or another's name
