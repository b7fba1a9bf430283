"""LoRAs set through the handle: the picture of diffusers with peft, at the cost of none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.lora.formats import LoraError
from tests.diffusers import models
from tests.diffusers.test_equality import LIMIT, Accelerate, Stock
from tests.diffusers.test_fallbacks import BLOCKS, STEPS
from tests.lora.networks import kohya, kohya_xl, network

TRAINED = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture
def pipe() -> Any:
    """A pipeline with models of its own."""
    return models.own_pipeline()


def lora_for(pipe: Any, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    """A LoRA for every linear layer of UNet and text encoders."""
    parts = {name: getattr(pipe, name) for name in TRAINED if hasattr(pipe, name)}
    names = kohya_xl if "text_encoder_2" in parts else kohya
    return network(parts, names, seed=seed, **options)


def bits(pipe: Any) -> list[Tensor]:
    return [
        weight.clone()
        for name in TRAINED
        if hasattr(pipe, name)
        for weight in getattr(pipe, name).parameters()
    ]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "inpainting", "controlnet"])
def test_picture_is_that_of_peft(name: str, accelerate: Accelerate) -> None:
    other, pipe = models.own_pipeline(name), models.own_pipeline(name)
    lora = lora_for(pipe, alpha=2.0)
    other.load_lora_weights(dict(lora))
    handle = accelerate(pipe)
    handle.set_loras([(lora, 1.0, 1.0)])
    expected = models.picture(other, name)
    assert models.difference(models.picture(pipe, name), expected) <= LIMIT
    assert handle.report().generation.host == 0


def test_lora_counts(pipe: Any, accelerate: Accelerate, stock: Stock) -> None:
    accelerate(pipe).set_loras([(lora_for(pipe), 1.0, 1.0)])
    assert models.difference(models.picture(pipe, steps=STEPS), stock(steps=STEPS)) > 0.01


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_several_loras_with_their_scales_are_as_in_peft(pipe: Any, accelerate: Accelerate) -> None:
    other = models.own_pipeline()
    loras = [lora_for(pipe, seed) for seed in range(3)]
    scales = [0.7, -0.2, 1.3]
    for number, lora in enumerate(loras):
        other.load_lora_weights(dict(lora), adapter_name=f"number{number}")
    other.set_adapters([f"number{number}" for number in range(3)], scales)
    accelerate(pipe).set_loras([(lora, scale, scale) for lora, scale in zip(loras, scales, strict=True)])
    assert models.difference(models.picture(pipe), models.picture(other)) <= LIMIT


def test_scales_of_text_encoder_and_unet_are_apart(pipe: Any, accelerate: Accelerate) -> None:
    before = bits(pipe)
    accelerate(pipe).set_loras([(lora_for(pipe), 1.0, 0.0)])
    of_unet = len(list(pipe.unet.parameters()))
    assert same(bits(pipe)[:of_unet], before[:of_unet])
    assert not same(bits(pipe)[of_unet:], before[of_unet:])


def test_a_file_is_the_same_as_its_tensors(pipe: Any, accelerate: Accelerate, tmp_path: Path) -> None:
    lora = lora_for(pipe)
    save_file(lora, tmp_path / "style.safetensors")
    handle = accelerate(pipe)
    fused = handle.set_loras([(lora, 1.0, 1.0)])
    before = bits(pipe)
    handle.set_loras([])
    again = handle.set_loras([(tmp_path / "style.safetensors", 1.0, 1.0)])
    assert same(bits(pipe), before)
    assert (again.networks, again.layers) == (("style",), fused.layers)


def test_no_loras_give_the_same_bits_back(pipe: Any, accelerate: Accelerate) -> None:
    before = bits(pipe)
    handle = accelerate(pipe)
    for count in (1, 16, 3):
        handle.set_loras([(lora_for(pipe, seed), 0.3, 0.4) for seed in range(count)])
        assert not same(bits(pipe), before)
    handle.set_loras([])
    assert same(bits(pipe), before)


def test_detach_takes_loras_off(pipe: Any, accelerate: Accelerate) -> None:
    before = bits(pipe)
    handle = accelerate(pipe)
    handle.set_loras([(lora_for(pipe), 1.0, 1.0)])
    handle.detach()
    assert same(bits(pipe), before)


def test_loras_stay_while_blocks_are_switched_off(pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    handle.set_loras([(lora_for(pipe), 1.0, 1.0)])
    ours = models.picture(pipe, steps=STEPS)
    handle.enabled = False
    assert models.difference(models.picture(pipe, steps=STEPS), ours) <= LIMIT


class Operations(TorchDispatchMode):
    """Lists every operation with the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((func, [tuple(each.shape) for each in args if isinstance(each, Tensor)]))
        return func(*args, **(kwargs or {}))


def test_a_picture_takes_the_same_operations_with_any_number_of_loras(
    pipe: Any, accelerate: Accelerate
) -> None:
    handle = accelerate(pipe)
    seen = []
    for count in (0, 1, 16):
        handle.set_loras([(lora_for(pipe, seed), 0.1, 0.1) for seed in range(count)])
        with Operations() as operations:
            models.picture(pipe, steps=2)
        seen.append(operations.seen)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) > 2 * BLOCKS


def test_report_counts_loras_and_their_time(pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    handle.set_loras([(lora_for(pipe, seed), 0.5, 0.5) for seed in range(2)])
    assert handle.report().generation.networks == 2
    assert handle.report().generation.fuse_s > 0
    handle.begin_generation()
    assert (handle.report().generation.networks, handle.report().generation.fuse_s) == (2, 0)


# What set_loras is given, of a pipeline, and what the error says.
WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "of another architecture": (lambda pipe: (lora_for(models.pipeline("sdxl")), 1.0, 1.0), "another arch"),
    "broken": (
        lambda pipe: ({"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3)}, 1.0, 1.0),
        "lora_unet_conv_in",
    ),
    "of no file": (lambda pipe: ("nowhere.safetensors", 1.0, 1.0), "nowhere"),
    "a path alone": (lambda pipe: "abc", "set_loras: got str, expected"),
    "without a scale": (lambda pipe: (lora_for(pipe), 1.0), "set_loras: got 2 values, expected"),
    "with text for a scale": (
        lambda pipe: (lora_for(pipe), 1.0, "1"),
        "got no numbers for scales, exp",
    ),
    "of endless scale": (lambda pipe: (lora_for(pipe), 1.0, float("inf")), "expected finite numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_lora_leaves_everything_as_it_was(name: str, pipe: Any, accelerate: Accelerate) -> None:
    make, message = WRONG[name]
    handle = accelerate(pipe)
    handle.set_loras([(lora_for(pipe, 1), 1.0, 1.0)])
    before = bits(pipe)
    with pytest.raises(LoraError, match=message) as caught:
        handle.set_loras([(lora_for(pipe, 2), 1.0, 1.0), make(pipe)])
    assert same(bits(pipe), before)
    assert "\n" not in str(caught.value)
    assert handle.report().generation.networks == 1


def test_unet_that_comes_later_gets_the_loras(pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    first, second = pipe.unet, models.own_pipeline().unet
    before = [weight.clone() for weight in first.parameters()]
    handle.set_loras([(lora_for(pipe), 1.0, 1.0)])
    pipe.unet = second
    handle.set_loras([(lora_for(pipe), 1.0, 1.0)])
    assert same(list(first.parameters()), before)
    assert not same(list(second.parameters()), before)
