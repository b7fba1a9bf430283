"""ControlNets as sd-webui-controlnet has them: half a UNet of the same blocks, and a loop of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.bench.graphs_models import home_of, randomized

_SHARE = 0.1  # of what a control model says, which is added: its weights are random

# Channels in and out, and stride, of the chain that reads the hint. Source: ControlNet's cldm.py.
_HINT = ((3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 96, 2), (96, 96, 1), (96, 256, 2))


class ControlModel(nn.Module):
    """The first half of a UNet, a chain that reads the hint, and a convolution after each block."""

    def __init__(self, unet: Any, home: Any) -> None:
        """home: the module of the UNet's class, whose containers hold the blocks."""
        super().__init__()
        container: Any = home.TimestepEmbedSequential
        self.waves, self.model_channels = home.timestep_embedding, unet.model_channels
        self.time_embed = copy.deepcopy(unet.time_embed)
        self.input_blocks = copy.deepcopy(unet.input_blocks)
        self.middle_block = copy.deepcopy(unet.middle_block)
        first = next(each for each in self.input_blocks.modules() if isinstance(each, nn.Conv2d))
        like: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
        chain: list[nn.Module] = []
        for inner, outer, stride in _HINT:
            chain += [nn.Conv2d(inner, outer, 3, padding=1, stride=stride, **like), nn.SiLU()]
        last = _HINT[-1][1]
        self.input_hint_block = container(*chain, nn.Conv2d(last, first.out_channels, 3, padding=1, **like))
        widths = _widths(self.input_blocks)
        self.zero_convs = nn.ModuleList(container(nn.Conv2d(each, each, 1, **like)) for each in widths)
        self.middle_block_out = container(nn.Conv2d(widths[-1], widths[-1], 1, **like))

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:
        """What to add to each skip of the UNet and, last, to its middle."""
        emb = _embedding(self, self.waves, timesteps)
        h, outs = x, []
        for number, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            h = block(h, emb, context)
            if number == 0:
                h += self.input_hint_block(hint, emb, context)  # in place, as there
            outs.append(zero_conv(h, emb, context))
        h = self.middle_block(h, emb, context)
        return [*outs, self.middle_block_out(h, emb, context)]


def control_model(unet: Any, package: str, seed: int) -> Any:
    """A control model for that UNet, of weights of its own."""
    return randomized(ControlModel(unet, home_of(package)), seed)


def _embedding(model: Any, waves: Any, timesteps: Tensor) -> Tensor:
    """The embedding that all blocks of a call are handed; `waves`: the package's own function."""
    steps = waves(timesteps, model.model_channels, repeat_only=False)
    emb: Tensor = model.time_embed(steps.to(model.time_embed[0].weight.dtype))
    return emb


def controlled(
    unet: Any, controls: Sequence[Any], x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor
) -> Tensor:
    """One call of a UNet without a vector: its blocks one by one, its own forward never."""
    told = [control(x, hint, timesteps, context) for control in controls]
    added = [_SHARE * sum(parts[1:], parts[0]) for parts in zip(*told, strict=True)]
    emb = _embedding(unet, controls[0].waves, timesteps)
    h, skips = x, []
    for block in unet.input_blocks:
        h = block(h, emb, context)
        skips.append(h)
    h = unet.middle_block(h, emb, context) + added.pop()
    for block in unet.output_blocks:
        h = block(torch.cat([h, skips.pop() + added.pop()], dim=1), emb, context)
    result: Tensor = unet.out(h)
    return result


def _widths(blocks: nn.ModuleList) -> list[int]:
    """How many channels come out of each block."""
    widths: list[int] = []
    for block in blocks:
        inner: list[Any] = list(block.children())
        made = [getattr(each, "out_channels", None) for each in inner]
        known = [each for each in made if each is not None]
        widths.append(known[0] if known else widths[-1])
    return widths
