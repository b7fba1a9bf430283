"""A UNet that torch.compile runs goes on so: our functions have no place in its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lib_accel.layouts.reading import COMPILED
from tests.diffusers import models
from tests.diffusers.test_equality import LIMIT, Accelerate, Stock
from tests.diffusers.test_fallbacks import BLOCKS, STEPS, TRANSFORMERS, live_blocks


def wrap(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compile_in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def compile_blocks(pipe: Any) -> None:
    pipe.unet.compile_repeated_blocks(backend="eager")


@pytest.mark.parametrize("compile_unet", [wrap, compile_in_place])
@pytest.mark.parametrize("is_first", [True, False])
def test_compiled_unet_makes_its_picture(
    compile_unet: Callable[[Any], None], is_first: bool, accelerate: Accelerate, stock: Stock
) -> None:
    pipe = models.own_pipeline()
    steps = (compile_unet, accelerate) if is_first else (accelerate, compile_unet)
    handle = next(made for made in [step(pipe) for step in steps] if made is not None)
    assert models.difference(models.picture(pipe, steps=STEPS), stock(steps=STEPS)) <= LIMIT
    assert live_blocks(handle) == (BLOCKS, 0)
    assert COMPILED in handle.report().summary


def test_compiled_blocks_stay_compiled(accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.own_pipeline()
    compile_blocks(pipe)
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe, steps=STEPS), stock(steps=STEPS)) <= LIMIT
    assert live_blocks(handle) == (TRANSFORMERS, STEPS * TRANSFORMERS)
    assert set(handle.report().generation.reasons) == {f"BasicTransformerBlock is {COMPILED}"}


def test_lora_goes_into_a_compiled_unet(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    wrap(pipe)
    handle = accelerate(pipe)
    before = models.picture(pipe, steps=STEPS)
    lora = {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3)}
    lora["lora_unet_conv_in.lora_up.weight"] = torch.ones(32, 1, 1, 1)
    handle.set_loras([(lora, 1.0, 1.0)])
    assert models.difference(models.picture(pipe, steps=STEPS), before) > 0.01
