"""A sampling step asks torch for no more around the blocks of a UNet than it does without us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lib_accel.hosts.diffusers import Handle
from tests.diffusers import models
from tests.diffusers.step_cost import SCHEDULERS, STEPS, counted
from tests.host.step_counter import BLOCKS, LAUNCH, WAIT
from tests.host.step_counts import problems

Accelerate = Callable[..., Handle]

# Schedulers hand tensors to numpy 2, which finds that torch's __array__ lacks its newest argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_scheduler_waits_or_computes_more(accelerate: Accelerate, scheduler: str) -> None:
    pipe = models.own_pipeline()
    pipe.scheduler = SCHEDULERS[scheduler]()
    stock = counted(pipe)
    accelerate(pipe)
    assert problems(stock, counted(pipe)) == []


@pytest.mark.parametrize("form", ["sdxl", "controlnet", "sd1 img2img", "inpainting"])
def test_no_pipeline_waits_or_computes_more(accelerate: Accelerate, form: str) -> None:
    pipe = models.own_pipeline(form)
    stock = counted(pipe, form)
    accelerate(pipe)
    assert problems(stock, counted(pipe, form)) == []


def test_a_step_without_guidance_waits_and_computes_no_more(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    stock = counted(pipe, guidance_scale=1.0)
    accelerate(pipe)
    assert problems(stock, counted(pipe, guidance_scale=1.0)) == []


def test_blocks_of_a_step_compute_no_more(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    stock = counted(pipe)
    accelerate(pipe)
    assert counted(pipe).per_step(part=BLOCKS, kind=LAUNCH) <= stock.per_step(part=BLOCKS, kind=LAUNCH)


def test_what_a_host_waits_for_is_seen() -> None:
    pipe = models.own_pipeline()  # with DDIM, which reads the time of each step
    reads: Any = counted(pipe).total(lambda asked: asked.place.split(":")[0], kind=WAIT)
    assert reads["diffusers/schedulers/scheduling_ddim.py"] >= STEPS - 2
