"""The picture of an accelerated pipeline is the picture of the pipeline, and every block of it is ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lib_accel.blocks import encoder, image, res, sample, transformer
from tests.diffusers import models

Accelerate = Callable[..., Any]
Stock = Callable[..., Any]

LIMIT = 1e-5  # relative L2, float32, after 20 steps

# The models of each pipeline that have blocks of ours.
MODELS = {name: {"vae", "text_encoder", "unet"} for name in models.FORMS}
for _name in ("controlnet", "two controlnets", "controlnet img2img", "controlnet inpaint"):
    MODELS[_name] = MODELS[_name] | {"controlnet"}
for _name in ("sdxl", "sdxl img2img", "sdxl inpaint", "sdxl controlnet"):
    MODELS[_name] = MODELS[_name] | {"text_encoder_2"}
MODELS["sdxl controlnet"] = MODELS["sdxl controlnet"] | {"controlnet"}
MODELS["altdiffusion"] = {"vae", "unet"}


@pytest.mark.parametrize("name", models.FORMS)
def test_picture_is_the_same_and_all_blocks_are_ours(name: str, accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.pipeline(name)
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe, name), stock(name)) <= LIMIT
    report = handle.report()
    assert {model.name for model in report.models} == MODELS[name]
    assert [model.blocks.host for model in report.models] == [0] * len(report.models)
    assert (report.generation.host, dict(report.generation.reasons)) == (0, {})
    blocks_of_unet = next(model.blocks.direct for model in report.models if model.name == "unet")
    assert report.generation.direct >= 20 * blocks_of_unet > 0


GIVEN = {
    "without guidance": {"guidance_scale": 1.0},
    "three at once": {"num_images_per_prompt": 3},
    "wide": {"width": 128, "height": 64},
    "a size that does not halve": {"width": 72, "height": 104},
    "unused scale of adapters": {"cross_attention_kwargs": {"scale": 1.0}},
    "rescaled guidance": {"guidance_rescale": 0.7},
    "a decoded picture": {"output_type": "pt"},
}


@pytest.mark.parametrize("case", GIVEN)
def test_options_of_a_call_are_heeded(case: str, accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    before = models.picture(pipe, steps=4, **GIVEN[case])
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe, steps=4, **GIVEN[case]), before) <= LIMIT
    assert handle.report().generation.host == 0


@pytest.mark.parametrize("kind", models.UNETS)
@pytest.mark.parametrize("batch_of", [1, 3])
def test_unet_alone_is_the_same(kind: str, batch_of: int, accelerate: Accelerate) -> None:
    name = "inpainting" if kind == "inpainting" else kind
    pipe = models.pipeline(name)
    given = {"encoder_hidden_states": torch.randn(2, 77 * batch_of, pipe.unet.config.cross_attention_dim)}
    with torch.inference_mode():
        before = models.call(pipe.unet, **given)
        accelerate(pipe)
        assert models.difference(models.call(pipe.unet, **given), before) <= LIMIT


def test_layers_of_the_text_encoder_are_the_same(accelerate: Accelerate) -> None:
    pipe = models.pipeline("sdxl")
    tokens = torch.arange(2 * models.TOKENS).view(2, -1)
    with torch.no_grad():
        before = pipe.text_encoder_2(tokens, output_hidden_states=True)
        accelerate(pipe)
        after = pipe.text_encoder_2(tokens, output_hidden_states=True)
    assert len(after.hidden_states) == len(before.hidden_states) == 3
    pairs = zip((*after.hidden_states, after[0]), (*before.hidden_states, before[0]), strict=True)
    assert max(models.difference(ours, stock) for ours, stock in pairs) <= LIMIT


@pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput` is deprecated")  # its own forward makes it
@pytest.mark.parametrize("as_dict", [True, False])
def test_result_has_the_form_that_is_asked_for(as_dict: bool, accelerate: Accelerate) -> None:
    pipe = models.pipeline()
    layer = models.parts_of(pipe.unet, "Transformer2DModel")[0]
    given = {"hidden_states": torch.randn(1, 32, 8, 8), "encoder_hidden_states": torch.randn(1, 5, 32)}
    with torch.no_grad():
        before = layer(**given, return_dict=as_dict)
        accelerate(pipe)
        after = layer(**given, return_dict=as_dict)
    assert type(after) is type(before)
    assert models.difference(after[0], before[0]) <= LIMIT


def test_channels_last_weights_are_the_same(accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.own_pipeline()
    for model in (pipe.unet, pipe.vae):
        model.to(memory_format=torch.channels_last)
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe), stock()) <= LIMIT
    assert handle.report().generation.host == 0


@pytest.mark.parametrize("under_autocast", [False, True])
def test_bfloat16_is_as_near_to_float32_as_stock(
    under_autocast: bool, accelerate: Accelerate, stock: Stock
) -> None:
    pipe = models.own_pipeline()
    if not under_autocast:
        pipe.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
        before = models.picture(pipe, steps=4)
        handle = accelerate(pipe)
        after = models.picture(pipe, steps=4)
    exact = stock(steps=4)
    assert models.difference(after, exact) <= 1.5 * models.difference(before, exact)
    assert handle.report().generation.host == 0
    assert after.dtype is before.dtype


def test_encoded_and_decoded_images_are_the_same(accelerate: Accelerate) -> None:
    pipe = models.pipeline()
    pixels = torch.rand(2, 3, 40, 56) * 2 - 1
    with torch.no_grad():
        before = pipe.vae.encode(pixels).latent_dist.mean, pipe.vae.decode(torch.ones(1, 4, 5, 7)).sample
        accelerate(pipe)
        after = pipe.vae.encode(pixels).latent_dist.mean, pipe.vae.decode(torch.ones(1, 4, 5, 7)).sample
    assert max(map(models.difference, after, before)) <= LIMIT


def test_tiled_and_sliced_vae_gives_the_same(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 64, 8
    latents = torch.randn(2, 4, 12, 16)
    with torch.no_grad():
        before = pipe.vae.decode(latents).sample
        accelerate(pipe)
        assert models.difference(pipe.vae.decode(latents).sample, before) <= LIMIT


# Every function that a pipeline's blocks run, by the module that the steps look it up in.
FUNCTIONS = [
    (res, "res_block"),
    (transformer, "enter"),
    (transformer, "attend"),
    (transformer, "feed_forward"),
    (transformer, "leave"),
    (sample, "convolution"),
    (sample, "resize"),
    (sample, "embed"),
    (sample, "silu"),
    (encoder, "encoder_layer"),
    (image, "image_attention"),
    (image, "shrink"),
]


@pytest.mark.parametrize(("home", "name"), FUNCTIONS)
def test_fault_of_a_hundredth_in_any_function_is_noticed(
    home: Any, name: str, accelerate: Accelerate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = models.own_pipeline("controlnet img2img")
    given = {"steps": 2, "output_type": "pt"}
    before = models.picture(pipe, "controlnet img2img", **given)
    right = getattr(home, name)
    monkeypatch.setattr(home, name, lambda *args: right(*args) * 1.01)
    accelerate(pipe)
    assert models.difference(models.picture(pipe, "controlnet img2img", **given), before) > 5 * LIMIT
