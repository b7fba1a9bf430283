"""Small models of the hosts' own classes, without a zero anywhere, and inputs for them."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from torch import Tensor, nn

CONTEXT_WIDTH = 24
VECTOR_WIDTH = 20
CHANNELS = 64  # of the models' first level: two to a group of a norm, or the timestep would be normed away

_PACKAGES = str(Path(__file__).parent / "packages")


def sgm_openaimodel() -> ModuleType:
    """The stand-in for sgm's `openaimodel`, imported under that name."""
    if _PACKAGES not in sys.path:
        sys.path.insert(0, _PACKAGES)
    return importlib.import_module("sgm.modules.diffusionmodules.openaimodel")


def tiny_unet(seed: int = 0, **changes: Any) -> nn.Module:
    """A UNet as SD1 has it: two levels, each with attention."""
    settings: dict[str, Any] = {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": CHANNELS,
        "num_res_blocks": 1,
        "attention_resolutions": (1, 2),
        "channel_mult": (1, 2),
        "num_heads": 2,
        "use_spatial_transformer": True,
        "context_dim": CONTEXT_WIDTH,
        "use_checkpoint": False,
        "legacy": False,
    }
    return _copy_of(ldm_openaimodel.UNetModel, seed, tuple({**settings, **changes}.items()))


def tiny_sd2_unet(seed: int = 0) -> nn.Module:
    """A UNet as SD2 has it: heads by their size, linear projections."""
    return tiny_unet(seed, num_heads=-1, num_head_channels=16, use_linear_in_transformer=True)


def tiny_inpaint_unet(seed: int = 0) -> nn.Module:
    """A UNet as inpainting has it: nine channels in."""
    return tiny_unet(seed, in_channels=9)


def tiny_sgm_unet(seed: int = 0, **changes: Any) -> nn.Module:
    """A UNet as SDXL has it: two blocks a transformer, a vector beside the context."""
    settings: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": CHANNELS,
        "num_heads": 2,
        "context_dim": CONTEXT_WIDTH,
        "transformer_depth": 2,
        "num_classes": "sequential",
        "adm_in_channels": VECTOR_WIDTH,
        "use_linear_in_transformer": True,
    }
    return _copy_of(sgm_openaimodel().UNetModel, seed, tuple({**settings, **changes}.items()))


def _copy_of(kind: Any, seed: int, settings: tuple[tuple[str, Any], ...]) -> Any:
    """A model of one's own; copying is ten times faster than building."""
    return copy.deepcopy(_built(kind, seed, settings))


@functools.cache
def _built(kind: Any, seed: int, settings: tuple[tuple[str, Any], ...]) -> Any:
    return randomized(kind(**dict(settings)), seed)


class TinyControlNet(nn.Module):
    """A control model: the first half of a UNet, a hint's chain and a zero convolution after each block."""

    def __init__(self, home: ModuleType) -> None:
        super().__init__()
        low, high, emb = CHANNELS, 2 * CHANNELS, 4 * CHANNELS
        blocks = home.TimestepEmbedSequential
        self.home, self.dtype, self.model_channels = home, torch.float32, CHANNELS
        self.time_embed = nn.Sequential(nn.Linear(low, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.input_hint_block = blocks(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(16, low, 3, padding=1, stride=2),
        )
        transformer = {"depth": 1, "context_dim": CONTEXT_WIDTH}
        if home is ldm_openaimodel:
            transformer["use_checkpoint"] = False
        self.input_blocks = nn.ModuleList(
            [
                blocks(nn.Conv2d(4, low, 3, padding=1)),
                blocks(home.ResBlock(low, emb, 0), home.SpatialTransformer(low, 2, low // 2, **transformer)),
                blocks(home.Downsample(low, True)),
                blocks(
                    home.ResBlock(low, emb, 0, out_channels=high),
                    home.SpatialTransformer(high, 2, high // 2, **transformer),
                ),
            ]
        )
        self.zero_convs = nn.ModuleList(blocks(nn.Conv2d(c, c, 1)) for c in (low, low, low, high))
        self.middle_block = blocks(home.ResBlock(high, emb, 0))
        self.middle_block_out = blocks(nn.Conv2d(high, high, 1))

    def forward(self, x, hint, timesteps, context, y=None, **kwargs):
        """What to add to each skip of a UNet and to its middle."""
        steps = self.home.timestep_embedding(timesteps, self.model_channels, repeat_only=False)
        emb = self.time_embed(steps.to(self.dtype))
        guided_hint = self.input_hint_block(hint, emb, context)
        h, outs = x, []
        for module, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            h = module(h, emb, context)
            if guided_hint is not None:
                h += guided_hint  # in place, as sd-webui-controlnet's cldm.py does
                guided_hint = None
            outs.append(zero_conv(h, emb, context))
        h = self.middle_block(h, emb, context)
        return [*outs, self.middle_block_out(h, emb, context)]


def tiny_controlnet(home: ModuleType = ldm_openaimodel, seed: int = 5) -> TinyControlNet:
    """A control model of the blocks of `ldm` or `sgm`."""
    return randomized(TinyControlNet(home), seed)


def randomized(model: Any, seed: int) -> Any:
    """The model with every parameter drawn anew: no branch is zero, or small beside what it is added to."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_scaled(name, parameter, drawn))
    return model.eval().requires_grad_(False)


def _scaled(name: str, parameter: Tensor, drawn: Tensor) -> Tensor:
    if parameter.dim() > 1:
        # Averaging over tokens makes values smaller, and a residual block adds to what has grown long since.
        gain = 3.0 if ".to_v" in name else 1.5 if ".out_layers" in name else 1.0
        return drawn * gain / parameter[0].numel() ** 0.5
    return 1 + 0.2 * drawn if name.endswith("weight") else 0.2 * drawn


class Inputs(NamedTuple):
    """What a UNet is called with."""

    x: Tensor
    timesteps: Tensor
    context: Tensor
    y: Tensor | None = None

    def copy(self) -> Inputs:
        """The same values in other memory, with the same strides."""
        return Inputs(*(None if each is None else each.clone() for each in self))


def inputs(
    batch: int = 2,
    *,
    channels: int = 4,
    size: tuple[int, int] = (8, 8),
    tokens: int = 77,
    vector: bool = False,
    seed: int = 1,
) -> Inputs:
    """Random inputs; size is (height, width) of the latents."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Inputs(
        draw(batch, channels, *size),
        torch.linspace(100.0, 900.0, batch),
        draw(batch, tokens, CONTEXT_WIDTH),
        draw(batch, VECTOR_WIDTH) if vector else None,
    )


def run(unet: nn.Module, given: Inputs) -> Tensor:
    """One call, as the host makes it: without gradients."""
    beside = () if given.y is None else (given.y,)
    with torch.no_grad():
        return unet(given.x, given.timesteps, given.context, *beside)


def difference(ours: Tensor, stock: Tensor) -> float:
    """Relative L2 distance."""
    return float((ours.double() - stock.double()).norm() / stock.double().norm())
