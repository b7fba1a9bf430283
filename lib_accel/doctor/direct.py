"""Runs one of our functions and what it stands for, on each kind of device that there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lib_accel.doctor.facts import Trial

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lib_accel.blocks.res import ResWeights

# In half precision a value around 1 is off by 0.001 after each of a few roundings.
_CASES = (("cpu", "float32", 1e-5), ("cuda", "float16", 1e-2))

_CHANNELS, _OUT, _EMBEDDING, _GROUPS, _EPS = 8, 16, 12, 4, 1e-5


def try_direct() -> tuple[Trial, ...]:
    """Our residual block against the same block in plain torch, with random weights."""
    import torch

    return tuple(
        Trial(device, dtype, _difference(device, getattr(torch, dtype)), tolerance)
        for device, dtype, tolerance in _CASES
        if device == "cpu" or torch.cuda.is_available()
    )


def _difference(device: str, dtype: torch.dtype) -> float:
    import torch

    from lib_accel.blocks.convolution import ConvSpec
    from lib_accel.blocks.operators.group_norm import GroupNormSpec
    from lib_accel.blocks.res import ResSpec, res_block
    from lib_accel.blocks.rules import AS_IT_COMES
    from lib_accel.device import autocast_off

    random = torch.Generator().manual_seed(0)  # the program's own numbers stay where they are
    weights = _random_weights(random, device, dtype)
    x = torch.randn(2, _CHANNELS, 9, 7, generator=random).to(device, dtype)
    emb = torch.randn(2, _EMBEDDING, generator=random).to(device, dtype)
    norm, around = GroupNormSpec(_GROUPS, _EPS, upcast=False), ConvSpec(padding=(1, 1))
    spec = ResSpec(norm, around, norm, around, ConvSpec())
    with torch.no_grad(), autocast_off(device):
        ours = res_block(x, emb, weights, spec, AS_IT_COMES)
        return float((ours.float() - _plain(x, emb, weights).float()).abs().max())


def _random_weights(random: torch.Generator, device: str, dtype: torch.dtype) -> ResWeights:
    """Weights that keep values around 1."""
    import torch

    from lib_accel.blocks.res import ResWeights

    def weight(*shape: int) -> Tensor:
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        return (scale * torch.randn(*shape, generator=random)).to(device, dtype)

    return ResWeights(
        norm_in=weight(_CHANNELS),
        norm_in_bias=weight(_CHANNELS),
        conv_in=weight(_OUT, _CHANNELS, 3, 3),
        conv_in_bias=weight(_OUT),
        embed=weight(_OUT, _EMBEDDING),
        embed_bias=weight(_OUT),
        norm_out=weight(_OUT),
        norm_out_bias=weight(_OUT),
        conv_out=weight(_OUT, _OUT, 3, 3),
        conv_out_bias=weight(_OUT),
        skip=weight(_OUT, _CHANNELS, 1, 1),
        skip_bias=weight(_OUT),
    )


def _plain(x: Tensor, emb: Tensor, w: ResWeights) -> Tensor:
    """The block in torch's functions alone."""
    import torch.nn.functional as F

    assert w.embed is not None
    assert w.skip is not None
    h = F.silu(F.group_norm(x, _GROUPS, w.norm_in, w.norm_in_bias, _EPS))
    h = F.conv2d(h, w.conv_in, w.conv_in_bias, padding=1)
    h = h + F.linear(F.silu(emb), w.embed, w.embed_bias)[..., None, None]
    h = F.silu(F.group_norm(h, _GROUPS, w.norm_out, w.norm_out_bias, _EPS))
    h = F.conv2d(h, w.conv_out, w.conv_out_bias, padding=1)
    return F.conv2d(x, w.skip, w.skip_bias) + h
