"""Small encoders and decoders of the hosts' own VAE classes, and a call of one as the host makes it."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from ldm.modules.diffusionmodules import model as ldm_model
from torch import Tensor, nn

from lib_accel.layouts import vae
from lib_accel.layouts.entries import Unit
from lib_accel.layouts.reading import Candidate, Trust, class_name
from tests.fakes.models import randomized, sgm_openaimodel

_SETTINGS: dict[str, Any] = {
    "ch": 32,  # one to a group of a norm
    "out_ch": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 16,
    "z_channels": 4,
}


def sgm_model() -> ModuleType:
    """The stand-in for sgm's `model`, imported under that name."""
    sgm_openaimodel()
    return importlib.import_module("sgm.modules.diffusionmodules.model")


def tiny_decoder(home: ModuleType = ldm_model, seed: int = 0, **changes: Any) -> Any:
    """From latents (batch, 4, height, width) to images of twice the size with 3 channels; 10 blocks."""
    return randomized(home.Decoder(**{**_SETTINGS, **changes}), seed)


def tiny_encoder(home: ModuleType = ldm_model, seed: int = 0, **changes: Any) -> Any:
    """From images (batch, 3, height, width) to 8 channels of half the size; 8 blocks."""
    return randomized(home.Encoder(**{**_SETTINGS, **changes}), seed)


def nobody(method: Any) -> bool:
    """Trusts no replaced method."""
    return False


def chain(model: nn.Module, trust: Trust = nobody) -> list[Candidate]:
    """What the layout finds in an encoder or decoder of either package."""
    units = [entry for package in ("ldm", "sgm") for entry in vae.entries(package)]
    (unit,) = (each for each in units if each.path == class_name(type(model)))
    assert isinstance(unit, Unit)
    return unit.candidates(model, trust)


def picture(batch: int = 1, channels: int = 4, size: tuple[int, int] = (8, 8), seed: int = 1) -> Tensor:
    """Random latents or, of 3 channels, a random image."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, x: Tensor) -> Tensor:
    """One call without gradients; the input is its own, as a host may write into it."""
    with torch.no_grad():
        return model(x.clone())
