"""The stage that learns to draw what a caption says: UNet and text encoder together, in latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_accel.demo.train.loop import Lots, Plan, train
from lib_accel.demo.train.material import Material, Reader
from lib_accel.demo.train.models import new_scheduler, new_text_encoder, new_unet

_BATCH = 24
SNR_LIMIT = 5.0  # arXiv:2303.09556: easy, nearly clean steps count less

PLAN = Plan("unet", steps=8000, rate=1e-3, average=0.999)


def train_denoiser(
    material: Material, work: Path, deadline: float, *, device: str = "cpu", plan: Plan = PLAN
) -> tuple[Any, Any]:
    """A UNet and its text encoder that draw the scenes of `material` from their captions."""
    unet = new_unet(plan.seed).to(device)
    encoder = new_text_encoder(plan.seed).to(device)
    reader = Reader()

    def loss(lots: Lots) -> Tensor:
        scenes, latents, _ = material.pick(lots.choice, _BATCH)
        context = encoder(reader.for_training(scenes, lots.choice).to(device)).last_hidden_state
        return noise_error(unet, latents, context, lots.noise)

    train(plan, {"unet": unet, "text_encoder": encoder}, loss, work=work, deadline=deadline)
    return unet.eval().requires_grad_(False), encoder.eval().requires_grad_(False)


def noise_error(
    unet: Any,
    latents: Tensor,
    context: Tensor,
    noise_lots: torch.Generator,
    *,
    controlnet: Any = None,
    hints: Tensor | None = None,
    snr_limit: float = SNR_LIMIT,
) -> Tensor:
    """The weighted mean square error of the noise that the UNet finds at times drawn by lot.

    latents: (batch, 4, 8, 8) of deviation 1; context: (batch, 77, 32); hints: (batch, 3, 64, 64) in 0 to 1.
    Times whose ratio of signal to noise is above `snr_limit` count as much less as it is larger.
    """
    scheduler = new_scheduler()
    # One from each of as many equal parts: the loss then varies less from batch to batch.
    shares = (torch.arange(len(latents)) + torch.rand(len(latents), generator=noise_lots)) / len(latents)
    times = (shares * scheduler.config.num_train_timesteps).long()
    noise = torch.randn(latents.shape, generator=noise_lots)
    noisy = scheduler.add_noise(latents, noise, times).to(context.device)
    extra = {}
    if controlnet is not None:
        down, middle = controlnet(
            noisy, times.to(context.device), context, controlnet_cond=hints, return_dict=False
        )
        extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    found = unet(noisy, times.to(context.device), context, **extra).sample
    share = scheduler.alphas_cumprod[times]
    ratio = share / (1 - share)
    weight: Tensor = (ratio.clamp(max=snr_limit) / ratio).to(context.device)
    error: Tensor = (found - noise.to(context.device)).square().mean((1, 2, 3))
    return (error * weight).mean()
