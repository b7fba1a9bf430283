"""Weights in half precision: what rounding once does to a picture, against rounding after each network.

The yardstick is what the host itself leaves open: the difference between two attention functions of PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib_accel.bench.models import CONTEXT, TOKENS, pipeline
from lib_accel.bench.sizes import weights
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.terms import Factors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_RANK, _SHARE = 8, 0.15  # of a network: its rank, and the norm of its change as a part of the weight's
_SCALE, _MULTIPLIER = 0.5, 0.8  # what a host multiplies a change by, one after the other
_GUIDANCE = 7.0

Network = dict[str, tuple[Tensor, Tensor]]  # up and down by path


def rounding_figures(counts: Sequence[int], steps: int, dtypes: Sequence[torch.dtype] = DTYPES) -> list[Any]:
    """Relative differences (L2) of latents after so many steps, by dtype and number of networks.

    attention: between math and flash attention, with the host's merge. merge: between the host's merge and
    ours. host_from_float32, ours_from_float32: of each from all in float32.
    """
    networks = _networks(max(counts))
    rows = []
    for count in counts:
        some = networks[:count]
        exact = _latents(_merged(some, torch.float32, once=True), steps, SDPBackend.MATH)
        for dtype in dtypes:
            by_each = _merged(some, dtype, once=False)
            host = _latents(by_each, steps, SDPBackend.MATH)
            flash = _latents(by_each, steps, SDPBackend.FLASH_ATTENTION)
            ours = _latents(_merged(some, dtype, once=True), steps, SDPBackend.MATH)
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "loras": count,
                    "attention": _difference(flash, host),
                    "merge": _difference(ours, host),
                    "host_from_float32": _difference(host, exact),
                    "ours_from_float32": _difference(ours, exact),
                }
            )
    return rows


def _networks(count: int) -> list[Network]:
    source = torch.Generator().manual_seed(1)
    return [
        {path: _factors(weight, source) for path, weight in weights(pipeline("sd1").unet).items()}
        for _ in range(count)
    ]


def _factors(weight: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    up = torch.randn(len(weight), _RANK, generator=source)
    down = torch.randn(_RANK, weight[0].numel(), generator=source)
    gain = (_SHARE * weight.norm() / (up @ down).norm()).sqrt()
    return up * gain, down * gain


@torch.no_grad()
def _merged(networks: Sequence[Network], dtype: torch.dtype, *, once: bool) -> nn.Module:
    """A UNet that carries these networks, all in this dtype."""
    unet: nn.Module = pipeline("sd1").unet.to(dtype)
    for path, weight in weights(unet).items():
        factors = [(up.to(dtype), down.to(dtype)) for up, down in (each[path] for each in networks)]
        if once:
            strength = _SCALE * _MULTIPLIER
            write_sum(weight, weight.clone(), [Factors(up, down, strength) for up, down in factors])
        else:  # as in the webui's network_apply_weights
            for up, down in factors:
                change = (up @ down).reshape(weight.shape) * _SCALE * _MULTIPLIER
                weight.copy_(weight + change)
    return unet


@torch.no_grad()
def _latents(unet: Any, steps: int, attention: SDPBackend) -> Tensor:
    source = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, unet.config.sample_size, unet.config.sample_size, generator=source)
    context = torch.randn(2, TOKENS, CONTEXT, generator=source).to(unet.dtype)
    scheduler: Any = diffusers.DDIMScheduler.from_config(pipeline("sd1").scheduler.config)
    scheduler.set_timesteps(steps)
    with sdpa_kernel(attention):
        for time in scheduler.timesteps:
            noise = unet(torch.cat([latents, latents]).to(unet.dtype), time, context).sample.float()
            guided = noise[:1] + _GUIDANCE * (noise[1:] - noise[:1])
            latents = scheduler.step(guided, time, latents).prev_sample
    return latents


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
