"""Models whose convolution weights lie channels last: the same results, and no image is laid anew inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lib_accel
from lib_accel.channels_last import CHANNELS_LAST, Turned, convolution_weights, is_first, is_last
from lib_accel.engine import Engine
from tests.diffusers import models as of_diffusers
from tests.fakes.models import (
    difference,
    inputs,
    run,
    sgm_openaimodel,
    tiny_controlnet,
    tiny_sd2_unet,
    tiny_sgm_unet,
    tiny_unet,
)
from tests.fakes.vae import picture, tiny_decoder, tiny_encoder
from tests.fakes.vae import run as run_vae
from tests.test_equality import LIMIT

_FEW = 8  # channels of latents and pictures, which come as they come


class Spy(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the images that change from channels last to channels first, and are convolved channels first."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.convolved = 0
        self.faults: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, images = func.__name__, _images(args)
        if "convolution" in name:
            self.convolved += 1
            images, left = images[:1], images[:1]
        else:
            is_new = all(each.alias_info is None for each in func._schema.returns)
            left = _images((result,)) if is_new and any(map(_is_last, images)) else []
        self.faults += [f"{name} {tuple(each.shape)}" for each in left if is_first(each)]
        return result


def _images(values: Any) -> list[Tensor]:
    found = torch.utils._pytree.tree_leaves(values)
    return [each for each in found if isinstance(each, Tensor) and each.dim() == 4 and each.shape[1] > _FEW]


def _is_last(image: Tensor) -> bool:
    """By the stride of the batch too, which many operations go by even for a batch of one."""
    return is_last(image) and image.stride(0) == image[0].numel()


def turned(model: nn.Module) -> Turned:
    result = Turned()
    result.lay(CHANNELS_LAST.find(model))
    return result


def control(model: Any, batch: int) -> list[Tensor]:
    given, hint = inputs(batch), torch.ones(batch, 3, 64, 64)
    with torch.no_grad():
        return model(given.x, hint, given.timesteps, given.context)


Call = Callable[[nn.Module, int], Any]

MODELS: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "sd1": (tiny_unet, lambda model, batch: [run(model, inputs(batch))]),
    "sd2": (tiny_sd2_unet, lambda model, batch: [run(model, inputs(batch))]),
    "sgm": (tiny_sgm_unet, lambda model, batch: [run(model, inputs(batch, vector=True))]),
    "control": (tiny_controlnet, control),
    "control of sgm": (lambda: tiny_controlnet(sgm_openaimodel()), control),
    "decoder": (tiny_decoder, lambda model, batch: [run_vae(model, picture(batch))]),
    "encoder": (tiny_encoder, lambda model, batch: [run_vae(model, picture(batch, 3, (16, 16)))]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 2])
def test_results_are_the_same(engine: Engine, name: str, batch: int) -> None:
    make, call = MODELS[name]
    model = make()
    before = call(model, batch)
    turned(model)
    assert max(map(difference, call(model, batch), before)) <= LIMIT
    assert engine.generation.host == 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.usefixtures("engine")
def test_images_stay_channels_last_from_the_first_convolution_to_the_last(name: str, batch: int) -> None:
    make, call = MODELS[name]
    model = make()
    turned(model)
    with Spy() as spy:
        call(model, batch)
    assert spy.faults == []
    assert spy.convolved >= sum(map(is_last, convolution_weights(model)))


@pytest.mark.usefixtures("engine")
def test_put_back_weights_give_the_same_bits_again() -> None:
    unet = tiny_unet()
    before = run(unet, inputs())
    turned(unet).put_back()
    assert torch.equal(run(unet, inputs()), before)


@pytest.mark.usefixtures("engine")
def test_autocast_changes_nothing_of_it() -> None:
    unet = tiny_unet()
    turned(unet)
    with torch.autocast("cpu", torch.bfloat16), Spy() as spy:
        run(unet, inputs(1))
    assert spy.faults == []


def test_a_spy_sees_images_that_are_laid_anew() -> None:
    image = torch.ones(2, 16, 4, 4).to(memory_format=torch.channels_last)
    with Spy() as spy:
        torch.nn.functional.conv2d(image.contiguous(), torch.ones(8, 16, 1, 1))
    assert spy.faults == ["clone.default (2, 16, 4, 4)", "convolution.default (2, 16, 4, 4)"]


# diffusers


@pytest.fixture
def pipe() -> Iterator[Any]:
    """A pipeline with a ControlNet, which is accelerated."""
    pipe = of_diffusers.own_pipeline("controlnet")
    handle = lib_accel.accelerate(pipe)
    yield pipe
    assert handle.report().generation.host == 0
    handle.detach()


@pytest.mark.parametrize("given", [{}, {"guidance_scale": 1.0}], ids=["guided", "batch of one"])
def test_pictures_of_diffusers_are_the_same_and_stay_channels_last(pipe: Any, given: dict[str, Any]) -> None:
    given = {"steps": 1, "output_type": "pt", **given}
    before = of_diffusers.picture(pipe, "controlnet", **given)
    for model in (pipe.unet, pipe.controlnet, pipe.vae):
        turned(model)
    with Spy() as spy:
        ours = of_diffusers.picture(pipe, "controlnet", **given)
    assert difference(ours, before) <= LIMIT
    assert spy.faults == []
