"""A model of one layer of each sort, and what networks make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lib_accel.lora.formats import read_network
from lib_accel.lora.fusion import Fuser, Wanted


class Small(nn.Module):
    """Numbers of inputs and outputs that have many factors, and differ."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 32)
        self.square = nn.Linear(24, 24)
        self.plain = nn.Linear(24, 32, bias=False)
        self.conv = nn.Conv2d(8, 16, 3)
        self.point = nn.Conv2d(8, 16, 1)
        self.group_norm = nn.GroupNorm(4, 16)
        self.layer_norm = nn.LayerNorm(24)
        numbers = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=numbers))
        self.eval().requires_grad_(False)


def draw(seed: int, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fused(
    *networks: Mapping[str, Tensor] | Path, scale: float = 1.0, dyn_dim: int | None = None
) -> dict[str, Tensor]:
    """All parameters of a Small with these networks, in this order."""
    model = Small()
    wanted = [Wanted(read_network(network), scale, scale, dyn_dim) for network in networks]
    Fuser({"unet": model}).fuse(wanted)
    return dict(model.named_parameters())


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((one - other).abs().max() / other.abs().max())
