"""The models of these tests are such that a fault shows and rounding does not grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.diffusers import models

Stock = Callable[..., Any]


@pytest.mark.parametrize("kind", models.UNETS)
def test_predictions_have_the_size_of_noise(kind: str) -> None:
    with torch.no_grad():
        assert 0.8 < float(models.call(models.unet(kind)).std()) < 1.2


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "altdiffusion"])
def test_prompt_counts(name: str, stock: Stock) -> None:
    other = models.picture(models.pipeline(name), name, prompt="a house by the sea")
    assert models.difference(other, stock(name)) > 0.01


@pytest.mark.parametrize(
    ("with_control", "without"),
    [("controlnet", "sd1"), ("two controlnets", "controlnet"), ("sdxl controlnet", "sdxl")],
)
def test_every_controlnet_counts(with_control: str, without: str, stock: Stock) -> None:
    assert models.difference(stock(with_control), stock(without)) > 0.01


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_rounding_does_not_grow(name: str, stock: Stock) -> None:
    pipe = models.own_pipeline(name)
    pipe.unet.conv_in.bias += 1e-6
    assert models.difference(models.picture(pipe, name), stock(name)) < 3e-6


def test_pipeline_and_its_copy_make_the_same_picture(stock: Stock) -> None:
    assert torch.equal(models.picture(models.pipeline()), stock())
