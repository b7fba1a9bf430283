"""UNets for the suite of graphs: of the classes of each package, in several widths, of random weights."""

from __future__ import annotations

import copy
import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch

_POOL = 1 << 20


@dataclass(frozen=True)
class Width:
    """What tells a UNet of SD1's form from another one."""

    channels: tuple[int, ...]  # of each level
    context: int  # width of the text encoder's output
    layers: int = 2  # residual blocks of a level


# "toy" has a pair of levels and is not offered on the command line: it shows that the suite works.
WIDTHS: dict[str, Width] = {
    "toy": Width((64, 128), 32, 1),
    "tiny": Width((64, 128, 256, 256), 64),  # as models.FORMS has "sd1"
    "half": Width((160, 320, 640, 640), 768),
    "sd15": Width((320, 640, 1280, 1280), 768),
}


class Place(NamedTuple):
    """Where models run, in which numbers, and on latents of which side there."""

    device: torch.device
    dtype: torch.dtype
    side: int


def place(width: str) -> Place:
    """The GPU with the latents of a picture of 512 pixels, where there is one, or else the CPU."""
    if torch.cuda.is_available():
        return Place(torch.device("cuda"), torch.float16, 64)
    return Place(torch.device("cpu"), torch.float32, 8 if width == "toy" else 16)


# Modules of the classes of UNets that webuis have, by package.
_HOMES = {
    "ldm": "ldm.modules.diffusionmodules.openaimodel",
    "sgm": "sgm.modules.diffusionmodules.openaimodel",
}
DIFFUSERS = "diffusers"
PACKAGES = (*_HOMES, DIFFUSERS)

VECTOR = 20  # width of SDXL's vector here


def home_of(package: str) -> ModuleType:
    """The module that has that package's UNetModel. Raises ImportError if there is none."""
    return importlib.import_module(_HOMES[package])


def compvis_unet(package: str, width: str, where: Place, seed: int = 0) -> Any:
    """A UNetModel of `ldm` as SD1 has it, or of `sgm` as SDXL has it. Raises ImportError."""
    kind: Any = home_of(package).UNetModel
    size = WIDTHS[width]
    low = size.channels[0]
    wanted: dict[str, Any] = {
        "image_size": where.side,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": low,
        "channel_mult": tuple(each // low for each in size.channels),
        "num_res_blocks": size.layers,
        "attention_resolutions": tuple(2**level for level in range(max(len(size.channels) - 1, 1))),
        "num_heads": 8,
        "use_spatial_transformer": True,
        "context_dim": size.context,
        "use_checkpoint": False,
        "legacy": False,
    }
    if package == "sgm":
        wanted |= {
            "transformer_depth": 2,
            "use_linear_in_transformer": True,
            "num_classes": "sequential",
            "adm_in_channels": VECTOR,
        }
    known = inspect.signature(kind).parameters
    given = {name: value for name, value in wanted.items() if name in known}
    return randomized(kind(**given), seed).to(where.device, where.dtype)


def diffusers_unet(width: str, where: Place, seed: int = 0) -> Any:
    """A UNet2DConditionModel as SD1 has it."""
    import diffusers  # only here: the suite of GPUs runs where it is absent

    size = WIDTHS[width]
    upper = len(size.channels) - 1
    unet = diffusers.UNet2DConditionModel(
        sample_size=where.side,
        block_out_channels=size.channels,
        layers_per_block=size.layers,
        cross_attention_dim=size.context,
        attention_head_dim=8,  # of which diffusers says that it is the number of heads
        down_block_types=("CrossAttnDownBlock2D",) * upper + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * upper,
    )
    return randomized(unet, seed).to(where.device, where.dtype)


def randomized(model: Any, seed: int) -> Any:
    """The model with every parameter drawn anew: no branch is zero, and what goes in comes out as large."""
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(seed))
    begin = 0
    for name, parameter in model.named_parameters():
        flat = parameter.detach().view(-1)
        for start in range(0, flat.numel(), _POOL):
            part = flat[start : start + _POOL]
            part.copy_(pool.roll(-begin)[: part.numel()])
            begin = (begin + part.numel() + 1) % _POOL
        if parameter.dim() > 1:
            flat.div_(parameter[0].numel() ** 0.5)
        else:
            flat.mul_(0.2).add_(1.0 if name.endswith("weight") else 0.0)
    return model.eval().requires_grad_(False)


def another_checkpoint(model: Any, seed: int) -> Any:
    """A model of the same configuration and other weights."""
    return randomized(copy.deepcopy(model), seed)


def sharing(model: Any) -> Any:
    """A model that shares the weights of another, but none of its modules."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def drawn(where: Place, *shape: int, seed: int = 1) -> torch.Tensor:
    """Normal numbers of that shape there; the same ones every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(where.device, where.dtype)
