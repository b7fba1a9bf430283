"""What `accelerate` accepts, and what its handle does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import lib_accel
from lib_accel.blocks import res, transformer
from lib_accel.engine import Engine
from lib_accel.errors import OptionError, PipelineError
from tests.diffusers import models
from tests.diffusers.classes import methods_of_classes
from tests.diffusers.test_equality import LIMIT, Accelerate, Stock
from tests.diffusers.test_fallbacks import BLOCKS, RESIDUALS, STEPS


class Other(nn.Module):
    """A model that is no UNet2DConditionModel."""


class Subclass(diffusers.UNet2DConditionModel):
    """Somebody's UNet with the blocks of all."""


def pipe_with(unet: Any) -> Any:
    pipe = models.pipeline()
    pipe.unet = unet
    return pipe


# What is not accelerated, and what the error says of it.
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "got NoneType without a UNet"),
    "a path": (lambda: "stable-diffusion-v1-5", "got str without a UNet"),
    "a bare UNet": (lambda: models.unet("sd1"), "got UNet2DConditionModel without a UNet"),
    "a UNet of none": (lambda: pipe_with(None), "got StableDiffusionPipeline without a UNet"),
    "another UNet": (lambda: pipe_with(Other()), "got a UNet of Other"),
    "a UNet without a prompt": (
        lambda: pipe_with(
            diffusers.UNet2DModel(
                block_out_channels=(32,), down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"]
            )
        ),
        "got a UNet of UNet2DModel",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_pipeline_is_refused_in_one_line(name: str) -> None:
    make, found = WRONG[name]
    with pytest.raises(PipelineError, match=found) as caught:
        lib_accel.accelerate(make())
    assert "expected a pipeline whose UNet is a UNet2DConditionModel" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"^fast: no such option, expected one of enabled"):
        lib_accel.accelerate(models.pipeline(), fast=True)


def test_wrong_value_of_an_option_is_refused() -> None:
    with pytest.raises(OptionError, match="enabled"):
        lib_accel.accelerate(models.pipeline(), enabled="yes")


def test_accelerating_twice_is_refused(accelerate: Accelerate) -> None:
    pipe = models.pipeline()
    accelerate(pipe)
    with pytest.raises(PipelineError, match="accelerated already; use the first handle, or call its detach"):
        lib_accel.accelerate(pipe)


def test_a_pipeline_of_the_same_unet_is_refused_too(accelerate: Accelerate) -> None:
    accelerate(models.pipeline())
    with pytest.raises(PipelineError, match="the UNet of this StableDiffusionImg2ImgPipeline is accelerated"):
        lib_accel.accelerate(models.pipeline("sd1 img2img"))


def test_refused_pipeline_leaves_classes_as_they_were() -> None:
    before = methods_of_classes()
    with pytest.raises(PipelineError):
        lib_accel.accelerate(pipe_with(Other()))
    assert methods_of_classes() == before


def test_detached_pipeline_can_be_accelerated_again(accelerate: Accelerate) -> None:
    pipe = models.pipeline()
    accelerate(pipe).detach()
    handle = accelerate(pipe)
    models.picture(pipe, steps=1)
    assert handle.report().generation.direct > 0


def test_a_subclass_of_the_unet_is_accelerated(accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.own_pipeline()
    pipe.unet.__class__ = Subclass
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe, steps=STEPS), stock(steps=STEPS)) <= LIMIT
    assert handle.report().generation.host == 0
    assert handle.report().generation.direct >= STEPS * BLOCKS


def test_accelerating_changes_no_key_no_module_and_no_attribute(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    before = {name: (module, dict(vars(module))) for name, module in pipe.unet.named_modules()}
    keys = list(pipe.unet.state_dict())
    accelerate(pipe)
    models.picture(pipe, steps=1)
    assert list(pipe.unet.state_dict()) == keys
    after = {name: (module, dict(vars(module))) for name, module in pipe.unet.named_modules()}
    assert {name: module for name, (module, _) in after.items()} == {n: m for n, (m, _) in before.items()}
    assert all(after[name][1].keys() == attributes.keys() for name, (_, attributes) in before.items())


def test_switched_off_is_stock_to_the_bit(accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.pipeline("sdxl controlnet")
    handle = accelerate(pipe)
    handle.enabled = False
    assert torch.equal(models.picture(pipe, "sdxl controlnet"), stock("sdxl controlnet"))
    assert (handle.report().generation.direct, handle.report().generation.host) == (0, 0)
    assert handle.report().summary == "off"


def test_switched_on_again_is_direct_again(accelerate: Accelerate) -> None:
    pipe = models.pipeline()
    handle = accelerate(pipe, enabled=False)
    models.picture(pipe, steps=1)
    assert handle.report().generation.direct == 0
    handle.enabled = True
    models.picture(pipe, steps=1)
    assert handle.report().generation.direct >= BLOCKS


def test_counters_start_anew_with_a_generation(accelerate: Accelerate) -> None:
    pipe = models.pipeline()
    handle = accelerate(pipe)
    models.picture(pipe, steps=2)
    once = handle.report().generation.direct
    handle.begin_generation()
    assert handle.report().generation.direct == 0
    models.picture(pipe, steps=2)
    assert handle.report().generation.direct == once > 0


def test_of_all_prompts_of_a_picture_the_first_begins_it(
    accelerate: Accelerate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, begun = models.pipeline("sdxl"), []
    accelerate(pipe)
    monkeypatch.setattr(Engine, "_apply", lambda engine: begun.append(engine))
    for _ in range(2):
        models.picture(pipe, "sdxl", steps=1)
    assert len(begun) == 2


def test_report_as_plain_values_names_the_models(accelerate: Accelerate) -> None:
    report = accelerate(models.pipeline("controlnet")).report().as_dict()
    assert [model["name"] for model in report["models"]] == ["vae", "text_encoder", "unet", "controlnet"]
    assert report["models"][2]["blocks"] == {"direct": BLOCKS, "compiled": 0, "host": 0}
    assert (report["enabled"], report["version"]) == (True, lib_accel.__version__)


def test_report_during_a_run_of_another_thread(accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.pipeline()
    handle = accelerate(pipe)
    made: list[torch.Tensor] = []
    run = threading.Thread(target=lambda: made.append(models.picture(pipe)))
    run.start()
    seen = [handle.report()]
    while run.is_alive():
        seen.append(handle.report())
    assert models.difference(made[0], stock()) <= LIMIT
    counts = [report.generation.direct for report in seen]
    assert counts == sorted(counts)
    assert all(report.models[2].blocks.direct == BLOCKS for report in seen)


@pytest.mark.parametrize(
    ("home", "name"), [(res, "res_block"), (transformer, "attend"), (transformer, "leave")]
)
def test_failure_of_ours_makes_the_stock_picture(
    home: Any, name: str, accelerate: Accelerate, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr(home, name, fail)
    pipe = models.pipeline()
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe, steps=STEPS), stock(steps=STEPS)) <= LIMIT
    assert "failed: ZeroDivisionError: no such luck" in handle.report().generation.reasons
    assert "failed: ZeroDivisionError: no such luck" in handle.report().models[2].blocks.reasons


def test_failed_block_is_ours_again_after_a_new_start(
    accelerate: Accelerate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = models.pipeline()
    with monkeypatch.context() as broken:
        broken.setattr(res, "res_block", None)
        handle = accelerate(pipe)
        models.picture(pipe, steps=1)
        handle.detach()
    assert handle.report().generation.host == RESIDUALS
    handle = accelerate(pipe)
    models.picture(pipe, steps=1)
    assert handle.report().generation.host == 0


def test_error_of_the_models_own_code_comes_out(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    accelerate(pipe)
    with pytest.raises(RuntimeError, match="shape"), torch.no_grad():
        models.call(pipe.unet, encoder_hidden_states=torch.zeros(2, 77, 5))
