"""What a sampling step of a diffusers pipeline asks of torch, with our code and without.

`python -m tests.diffusers.step_cost --json FILE` writes the counts, for a UNet with the blocks of SD1.5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

import lib_accel
from tests.diffusers import models
from tests.host.bench_steps import write
from tests.host.step_counter import BLOCKS, UNET, StepCounter
from tests.host.step_counts import Steps, summary

STEPS = 8
_NOISE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

SCHEDULERS: Mapping[str, Any] = {
    "Euler a": lambda: diffusers.EulerAncestralDiscreteScheduler(**_NOISE, steps_offset=1),
    "DPM++ 2M Karras": lambda: diffusers.DPMSolverMultistepScheduler(
        **_NOISE, steps_offset=1, use_karras_sigmas=True
    ),
    "DDIM": lambda: diffusers.DDIMScheduler(**_NOISE, steps_offset=1, set_alpha_to_one=False),
    "PNDM": lambda: diffusers.PNDMScheduler(**_NOISE, steps_offset=1, skip_prk_steps=True),
}

# As SD1.5, but narrow: how many operations there are does not depend on the width.
_AS_SD15: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "cross_attention_dim": models.CONTEXT_WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def counted(pipe: Any, name: str = "sd1", **given: Any) -> Steps:
    """What the whole steps of a picture ask for; a pipeline of that form, with whatever scheduler it has."""
    counter = StepCounter()

    def end_step(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        counter.next_step()
        return tensors

    blocks = (*pipe.unet.down_blocks, pipe.unet.mid_block, *pipe.unet.up_blocks)
    marks = counter.marked(UNET, pipe.unet), counter.marked(BLOCKS, *blocks)
    with marks[0], marks[1], counter.counting():
        models.picture(pipe, name, steps=STEPS, callback_on_step_end=end_step, **given)
    return Steps(counter.told())


def both_sides(pipe: Any) -> dict[str, Any]:
    """An average step without our code and with it."""
    stock = counted(pipe)
    handle = lib_accel.accelerate(pipe)
    try:
        ours = counted(pipe)
    finally:
        handle.detach()
    return {"stock": summary(stock), "ours": summary(ours)}


def _pipeline_as_sd15(dtype: torch.dtype) -> Any:
    pipe = models.own_pipeline()
    pipe.unet = diffusers.UNet2DConditionModel(**_AS_SD15).eval().requires_grad_(False)
    return pipe.to(dtype)


def main() -> int:
    """Count, and write the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.diffusers.step_cost")
    parser.add_argument("--json", type=Path, required=True, help="file to write; counts of the webui stay")
    arguments = parser.parse_args()
    cases: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipe = _pipeline_as_sd15(dtype)
        for name, make in SCHEDULERS.items():
            pipe.scheduler = make()
            cases.setdefault(f"as SD1.5, {dtype}", {})[name] = both_sides(pipe)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    write(arguments.json, "diffusers", {"environment": versions, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
