"""What is done in one run of a case: a picture's latents, a decoded picture, or an encoded prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lib_accel.bench.models import CONTEXT, SIDE_PX, TOKENS
from lib_accel.bench.suites import Case
from lib_accel.bench.timing import Clock

# Runs a case on a pipeline with so many steps, ticks the clock at the end of each, and gives what came out.
Job = Callable[[Any, Case, int, Clock], torch.Tensor]

_STRENGTH = 0.5  # of image to image: the share of the steps that is run


def _sample(pipe: Any, case: Case, steps: int, clock: Clock) -> torch.Tensor:
    asked = round(steps / _STRENGTH) if case.task == "image" else steps
    result = pipe(
        **request(case),
        num_inference_steps=asked,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        callback_on_step_end=clock.on_step_end,
    )
    latents: torch.Tensor = result.images
    return latents


def _decode(pipe: Any, case: Case, steps: int, clock: Clock) -> torch.Tensor:
    latents = _normal(1, 4, SIDE_PX // 8, SIDE_PX // 8)
    return _repeated(lambda: pipe.vae.decode(latents).sample, steps, clock)


def _encode(pipe: Any, case: Case, steps: int, clock: Clock) -> torch.Tensor:
    tokens = torch.arange(TOKENS).unsqueeze(0)
    return _repeated(lambda: pipe.text_encoder(tokens).last_hidden_state, steps, clock)


JOBS: dict[str, Job] = {
    "text": _sample,
    "image": _sample,
    "inpaint": _sample,
    "vae decode": _decode,
    "text encoder": _encode,
}


def request(case: Case) -> dict[str, Any]:
    """What is asked of the case's pipeline; the same values at every call."""
    wanted: dict[str, Any] = {
        "prompt_embeds": _normal(1, TOKENS, CONTEXT, seed=1),
        "negative_prompt_embeds": _normal(1, TOKENS, CONTEXT, seed=2),
    }
    if case.form == "sdxl":
        wanted["pooled_prompt_embeds"] = _normal(1, CONTEXT, seed=3)
        wanted["negative_pooled_prompt_embeds"] = _normal(1, CONTEXT, seed=4)
    if case.controls:
        hints = [_picture(seed) for seed in range(case.controls)]
        wanted["image"] = hints if case.controls > 1 else hints[0]
    if case.task == "image":
        wanted |= {"image": _picture(5), "strength": _STRENGTH}
    elif case.task == "inpaint":
        wanted |= {"image": _picture(5), "mask_image": (_picture(6)[:, :1] > 0.5).float(), "strength": 1.0}
    if case.task != "image":
        wanted |= {"width": SIDE_PX, "height": SIDE_PX}
    return wanted


def unet_call(pipe: Any) -> Callable[[], Any]:
    """One call of the UNet of an SD1 pipeline, as a step with guidance makes it."""
    side = SIDE_PX // 8
    latents, context = _normal(2, 4, side, side), _normal(2, TOKENS, CONTEXT)

    def call() -> Any:
        with torch.no_grad():
            return pipe.unet(latents, 500, encoder_hidden_states=context).sample

    return call


def _repeated(call: Callable[[], torch.Tensor], steps: int, clock: Clock) -> torch.Tensor:
    with torch.no_grad():
        for _ in range(steps):
            result = call()
            clock.tick()
    return result


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _picture(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(seed))
