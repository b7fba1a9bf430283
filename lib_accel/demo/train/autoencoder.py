"""The stage that learns pictures: 64x64 pixels to 8x8 latents and back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib_accel.demo.train.drawing import LINE, STYLES, Picture, draw
from lib_accel.demo.train.loop import Lots, Plan, train
from lib_accel.demo.train.models import SCALING, new_vae
from lib_accel.demo.train.scene import SHAPES, SUBJECT, draw_lots

_BATCH = 6  # more steps taught it more than larger ones did
_THING_WEIGHT = 6.0  # of a pixel that is not background, which most pixels are
_CLEAR_OF_GROUND = 0.1  # of a range of 2
_EDGE_WEIGHT = 0.2
_KL_WEIGHT = 1e-4
_FIRST_LOG_VARIANCE = -5.0  # of the posterior; at 0 its noise drowns what there is to learn
_MEASURED = 1024  # pictures whose latents are brought to mean 0 and deviation 1

_LINES = (2.5, 3.0)  # widths of outlines, pixels
_NOISE = 0.1  # of latents for the decoder, in their deviations: the UNet's are not quite the encoder's
_FULL_CONTRAST = 1.2  # of a thing against its ground, of a range of 2
_MOST_WEIGHT = 6.0  # of a picture of little contrast

PLAN = Plan("vae", steps=3500, rate=2e-3)
DECODER_PLAN = Plan("decoder", steps=2500, rate=7e-4, average=0.99)


def train_vae(work: Path, deadline: float, *, device: str = "cpu", plan: Plan = PLAN) -> Any:
    """An AutoencoderKL for all pictures that we draw, also those that only the LoRAs know."""
    vae = new_vae(plan.seed).to(device)

    with torch.no_grad():
        vae.quant_conv.bias[vae.config.latent_channels :] = _FIRST_LOG_VARIANCE

    def loss(lots: Lots) -> Tensor:
        pictures = as_input([_any_picture(lots.choice) for _ in range(_BATCH)]).to(device)
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample(lots.noise)).sample
        kl: Tensor = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return _differences(decoded, pictures).mean() + _KL_WEIGHT * kl

    train(plan, {"vae": vae}, loss, work=work, deadline=deadline)
    _normalise(vae, random.Random(plan.seed))
    return vae.eval().requires_grad_(False)


def train_decoder(vae: Any, work: Path, deadline: float, *, plan: Plan = DECODER_PLAN) -> Any:
    """The same AutoencoderKL with a decoder that also keeps lines of little contrast; latents stay."""
    vae.requires_grad_(False)
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)

    def loss(lots: Lots) -> Tensor:
        pictures = as_input([_any_picture(lots.choice, _LINES) for _ in range(_BATCH)]).to(vae.device)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
        noise = torch.randn(latents.shape, generator=lots.noise).to(latents)
        decoded = vae.decode(latents + _NOISE / SCALING * noise).sample
        return (_weight(pictures) * _differences(decoded, pictures)).mean()

    train(plan, {"decoder": decoder}, loss, work=work, deadline=deadline)
    return vae.eval().requires_grad_(False)


def _weight(pictures: Tensor) -> Tensor:
    """More for a picture whose things are hardly seen: its errors are as small as they are."""
    contrast = (pictures - pictures[:, :, :1, :1]).abs().amax((1, 2, 3))
    return (_FULL_CONTRAST / contrast).square().clamp(1, _MOST_WEIGHT)


def _any_picture(lot: random.Random, lines: Sequence[float] = (LINE,)) -> Picture:
    scene, style = draw_lots(lot, (*SHAPES, SUBJECT)), lot.choice(list(STYLES))
    return draw(scene, style, lines[0] if len(lines) == 1 else lot.choice(lines))


def as_input(pictures: Sequence[Picture]) -> Tensor:
    """Pictures as (batch, 3, height, width), float32 in -1 to 1."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float().div(127.5).sub(1)


def _differences(decoded: Tensor, wanted: Tensor) -> Tensor:
    """For each picture the square error, mostly of things, and the absolute error of steps between pixels."""
    error = decoded - wanted
    ground = wanted[:, :, :1, :1]  # no thing reaches the corner
    is_thing = (wanted - ground).abs().amax(1, keepdim=True) > _CLEAR_OF_GROUND
    edge = error.diff(dim=2).abs().mean((1, 2, 3)) + error.diff(dim=3).abs().mean((1, 2, 3))
    return (error.square() * (1 + _THING_WEIGHT * is_thing)).mean((1, 2, 3)) + _EDGE_WEIGHT * edge


@torch.no_grad()
def _normalise(vae: Any, lot: random.Random) -> None:
    """Gives each latent channel mean 0 and deviation 1 / SCALING, by the two 1x1 convolutions around it."""
    batches = [as_input([_any_picture(lot) for _ in range(64)]) for _ in range(_MEASURED // 64)]
    latents = torch.cat([vae.encode(batch.to(vae.device)).latent_dist.mean for batch in batches])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    factor = 1 / (SCALING * deviation)
    _scale_moments(vae.quant_conv, mean, factor)
    vae.post_quant_conv.bias += torch.einsum("oi,i->o", vae.post_quant_conv.weight[..., 0, 0], mean)
    vae.post_quant_conv.weight /= factor[:, None, None]


def _scale_moments(layer: nn.Conv2d, mean: Tensor, factor: Tensor) -> None:
    """The layer gives means, then logarithms of variances."""
    count = len(mean)
    assert layer.bias is not None
    layer.weight[:count] *= factor[:, None, None, None]
    layer.bias[:count] = (layer.bias[:count] - mean) * factor
    layer.bias[count:] += 2 * factor.log()
