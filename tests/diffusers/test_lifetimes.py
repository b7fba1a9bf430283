"""Pipelines come and go in any order; what is left behind is what was there before."""

from __future__ import annotations

import copy
import gc
import itertools
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import lib_accel
from lib_accel.blocks import res
from lib_accel.engine import Engine
from tests.diffusers import models
from tests.diffusers.classes import methods_of_classes
from tests.diffusers.test_equality import LIMIT, Accelerate, Stock
from tests.diffusers.test_fallbacks import BLOCKS, RESIDUALS, STEPS
from tests.lora.networks import network

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One item for each residual block that our function computes."""
    calls: list[None] = []
    right = res.res_block
    monkeypatch.setattr(res, "res_block", lambda *args: calls.append(None) or right(*args))
    return calls


def run_unet(pipe: Any) -> torch.Tensor:
    with torch.no_grad():
        return models.call(pipe.unet)


def test_acceleration_goes_on_when_the_handle_is_dropped(ours: list[None]) -> None:
    pipe = models.own_pipeline()
    lib_accel.accelerate(pipe)
    gc.collect()
    run_unet(pipe)
    assert len(ours) == RESIDUALS


def test_acceleration_goes_on_while_another_pipeline_has_the_unet(ours: list[None]) -> None:
    other = diffusers.StableDiffusionImg2ImgPipeline(**models.own_pipeline().components)
    pipe = diffusers.StableDiffusionPipeline(**other.components)
    lib_accel.accelerate(pipe)
    del pipe
    gc.collect()
    run_unet(other)
    assert len(ours) == RESIDUALS


@pytest.mark.parametrize("keeps_handle", [False, True])
@pytest.mark.parametrize("with_lora", [False, True])
def test_dropped_pipeline_is_freed(keeps_handle: bool, with_lora: bool) -> None:
    pipe = models.own_pipeline("controlnet")
    handle: Any = lib_accel.accelerate(pipe)
    models.picture(pipe, "controlnet", steps=1)
    if with_lora:
        handle.set_loras([(network({"unet": pipe.unet}), 1.0, 1.0)])
    handle.report()
    if not keeps_handle:
        del handle
    left = [weakref.ref(pipe), *(weakref.ref(model) for model in vars(pipe).values() if _is_model(model))]
    del pipe
    gc.collect()
    assert len(left) == 5
    assert [reference() for reference in left] == [None] * len(left)


def _is_model(value: Any) -> bool:
    return isinstance(value, torch.nn.Module)


def test_classes_are_as_before_once_the_unet_is_gone() -> None:
    before = methods_of_classes()
    pipe = models.own_pipeline()
    lib_accel.accelerate(pipe)
    assert methods_of_classes() != before
    del pipe
    gc.collect()
    assert methods_of_classes() == before


def test_detach_gives_the_same_functions_back_and_may_be_repeated() -> None:
    before = methods_of_classes()
    handle = lib_accel.accelerate(models.pipeline())
    assert all(
        new is not old for new, old in zip(methods_of_classes().values(), before.values(), strict=True)
    )
    for _ in range(3):
        handle.detach()
        assert methods_of_classes() == before


def test_detached_pipeline_runs_as_stock_to_the_bit(accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.pipeline("sdxl")
    handle = accelerate(pipe)
    models.picture(pipe, "sdxl", steps=1)
    handle.detach()
    assert torch.equal(models.picture(pipe, "sdxl"), stock("sdxl"))


ORDERS = list(itertools.product([(0, 1), (1, 0)], repeat=2))


@pytest.mark.parametrize(("begin", "end"), ORDERS)
def test_two_pipelines_begin_and_end_in_any_order(
    begin: tuple[int, int], end: tuple[int, int], ours: list[None]
) -> None:
    pipes = [models.own_pipeline(), models.own_pipeline()]
    before = methods_of_classes()
    handles = {which: lib_accel.accelerate(pipes[which]) for which in begin}
    for which in end:
        handles[which].detach()
        for pipe in pipes:
            run_unet(pipe)
    assert len(ours) == RESIDUALS  # of the pipeline that was not detached yet
    assert [handles[which].report().generation.direct for which in end] == [0, BLOCKS]
    assert methods_of_classes() == before


def test_accelerating_a_hundred_times_leaves_no_engine_behind() -> None:
    pipe = models.pipeline()
    gc.collect()
    before = sum(type(each) is Engine for each in gc.get_objects())
    for _ in range(100):
        lib_accel.accelerate(pipe).detach()
    gc.collect()
    assert sum(type(each) is Engine for each in gc.get_objects()) == before


def test_pipeline_that_shares_the_models_is_accelerated_with_them(
    accelerate: Accelerate, stock: Stock
) -> None:
    pipe = models.own_pipeline()
    handle = accelerate(pipe)
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert models.difference(models.picture(other, "sd1 img2img"), stock("sd1 img2img")) <= LIMIT
    assert handle.report().generation.host == 0
    assert handle.report().generation.direct >= 20 * BLOCKS


def test_controlnet_that_comes_later_is_accelerated(accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.own_pipeline("controlnet")
    handle = accelerate(pipe)
    models.picture(pipe, "controlnet", steps=1)
    pipe.controlnet = copy.deepcopy(models.controlnet("sd1", 3))
    handle.enabled = False
    before = models.picture(pipe, "controlnet", steps=STEPS)
    handle.enabled = True
    handle.begin_generation()
    assert models.difference(models.picture(pipe, "controlnet", steps=STEPS), before) <= LIMIT
    control = handle.report().models[-1]
    assert (control.name, control.blocks.host) == ("controlnet", 0)
    assert handle.report().generation.direct >= STEPS * (BLOCKS + control.blocks.direct)


def test_unet_that_comes_later_is_accelerated_when_the_first_is_gone(ours: list[None]) -> None:
    pipe = models.own_pipeline()
    handle = lib_accel.accelerate(pipe)
    run_unet(pipe)
    pipe.unet = copy.deepcopy(pipe.unet)
    gc.collect()
    ours.clear()
    run_unet(pipe)
    assert len(ours) == RESIDUALS
    handle.detach()


def test_models_of_others_are_left_alone(accelerate: Accelerate, ours: list[None], stock: Stock) -> None:
    handle = accelerate(models.pipeline())
    foreign = models.own_pipeline()
    assert torch.equal(models.picture(foreign), stock())
    assert (len(ours), handle.report().generation.direct, handle.report().generation.host) == (0, 0, 0)


def test_copy_of_an_accelerated_pipeline_is_not_accelerated(accelerate: Accelerate, ours: list[None]) -> None:
    pipe = models.own_pipeline()
    accelerate(pipe)
    run_unet(pipe)
    ours.clear()
    run_unet(copy.deepcopy(pipe))
    assert not ours


def test_two_pipelines_in_two_threads_make_their_pictures(accelerate: Accelerate, stock: Stock) -> None:
    names = ["sd2", "sdxl controlnet"]
    pipes = {name: models.pipeline(name) for name in names}
    handles = [accelerate(pipes["sd2"]), accelerate(pipes["sdxl controlnet"])]
    made: dict[str, torch.Tensor] = {}

    def run(name: str) -> None:
        made[name] = models.picture(pipes[name], name)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(models.difference(made[name], stock(name)) for name in names) <= LIMIT
    assert [handle.report().generation.host for handle in handles] == [0, 0]


_SCRIPT = """
import sys, diffusers, lib_accel
class Pipe: pass
pipe = Pipe()
blocks = {"block_out_channels": (32,), "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
pipe.unet = diffusers.UNet2DConditionModel(**blocks)
assert "diffusers.models.controlnets.controlnet" not in sys.modules
lib_accel.accelerate(pipe)
print(diffusers.ControlNetModel.forward.__globals__["__name__"])
"""


@pytest.fixture(scope="module")
def script() -> subprocess.CompletedProcess[str]:
    """A process that accelerates a pipeline and ends."""
    command = [sys.executable, "-c", _SCRIPT]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_process_of_an_accelerated_pipeline_ends(script: subprocess.CompletedProcess[str]) -> None:
    assert (script.returncode, script.stderr) == (0, "")


def test_class_of_controlnets_is_known_before_there_is_one(script: subprocess.CompletedProcess[str]) -> None:
    assert script.stdout.strip() == "lib_accel.patching"
