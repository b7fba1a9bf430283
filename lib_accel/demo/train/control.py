"""The ControlNet: edges, white on black, to a picture with those edges."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_accel.demo.train.captions import caption, shapeless
from lib_accel.demo.train.denoiser import noise_error
from lib_accel.demo.train.loop import Lots, Plan, train
from lib_accel.demo.train.material import Material, Reader
from lib_accel.demo.train.models import new_controlnet
from lib_accel.demo.train.scene import Scene

_BATCH = 16
_SHAPELESS_SHARE = 0.6  # of captions, so that the shape must come from the hint

PLAN = Plan("controlnet", steps=3500, rate=1e-3, average=0.99)


def train_controlnet(
    models: Mapping[str, Any], material: Material, work: Path, deadline: float, plan: Plan = PLAN
) -> Any:
    """A ControlNetModel for "unet" and "text_encoder", which stay as they are."""
    unet, encoder, reader = models["unet"], models["text_encoder"], Reader()
    torch.manual_seed(plan.seed)
    controlnet = new_controlnet(unet).to(unet.device)

    def loss(lots: Lots) -> Tensor:
        scenes, latents, hints = material.pick(lots.choice, _BATCH)
        tokens = reader.for_training(scenes, lots.choice, lambda scene: _said(scene, lots.choice))
        context = encoder(tokens.to(unet.device)).last_hidden_state
        return noise_error(
            unet, latents, context, lots.noise, controlnet=controlnet, hints=hints.to(unet.device)
        )

    train(plan, {"controlnet": controlnet.requires_grad_(True)}, loss, work=work, deadline=deadline)
    return controlnet.eval().requires_grad_(False)


def _said(scene: Scene, lot: random.Random) -> str:
    return shapeless(scene) if lot.random() < _SHAPELESS_SHARE else caption(scene, lot)
