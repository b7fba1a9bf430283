"""Weights stored through the handle: every block stays ours, LoRAs are fused before, all comes back."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.errors import OptionError
from lib_accel.hosts.diffusers import Handle
from lib_accel.lora import library
from lib_accel.lora.formats import LoraError
from lib_accel.storage.formats import FORMATS, StorageError
from lib_accel.storage.tensor import StoredWeight
from tests.diffusers import models
from tests.diffusers.test_equality import LIMIT, Accelerate, Stock
from tests.diffusers.test_launching import called, held, launched, recorder  # noqa: F401
from tests.diffusers.test_loras import bits, lora_for, same

STEPS = 2
PARTS = ("unet", "text_encoder")  # of an SD1 pipeline

# How far outputs of tiny UNets may be from those of what was loaded: the most that was measured, and a third.
FAR = {"int8": 0.035, "float8": 0.15}


@pytest.fixture
def pipe() -> Any:
    """A pipeline with models of its own."""
    return models.own_pipeline()


def linear(pipe: Any) -> list[Any]:
    """The weights of all linear layers."""
    modules = (module for name in PARTS for module in getattr(pipe, name).modules())
    return [module.weight for module in modules if type(module) is nn.Linear]


def codes(weights: list[Any]) -> list[Tensor]:
    return [part.clone() for weight in weights for part in (weight.codes, weight.scale)]


def codes_of(weights: list[Tensor], kind: str) -> list[Tensor]:
    """What plain weights are when they are stored."""
    return codes([StoredWeight.of(weight, FORMATS[kind], weight.dtype, 0) for weight in weights])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["sd1", "sdxl", "controlnet"])
def test_picture_is_the_hosts_with_these_weights_and_all_blocks_are_ours(
    name: str, kind: str, accelerate: Accelerate, stock: Stock
) -> None:
    pipe = models.own_pipeline(name)
    handle = accelerate(pipe)
    handle.store_weights(kind)
    ours, expected = held(handle, lambda: models.picture(pipe, name, steps=STEPS))
    assert models.difference(ours, expected) <= LIMIT
    assert models.difference(ours, stock(name, steps=STEPS)) > 100 * LIMIT
    generation = handle.report().generation
    assert (generation.host, dict(generation.reasons)) == (0, {})
    assert generation.direct > 0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("unet", models.UNETS)
def test_outputs_are_as_near_as_the_docstring_says(unet: str, kind: str, accelerate: Accelerate) -> None:
    pipe = models.own_pipeline(unet)
    handle = accelerate(pipe)
    with torch.inference_mode():
        before = models.call(pipe.unet)
        handle.store_weights(kind)
        assert 0.005 < models.difference(models.call(pipe.unet), before) <= FAR[kind]
    assert handle.report().generation.host == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_all_linear_layers_of_unet_and_text_encoder_are_stored(
    kind: str, pipe: Any, accelerate: Accelerate
) -> None:
    plain = [weight.clone() for weight in linear(pipe)]
    stored = accelerate(pipe).store_weights(kind)
    assert same(codes(linear(pipe)), codes_of(plain, kind))
    assert stored.layers == len(plain)
    assert stored.loaded_bytes == sum(weight.nbytes for weight in plain)
    assert stored.bytes == sum(part.nbytes for part in codes(linear(pipe)))


@pytest.mark.parametrize("way_back", [lambda handle: handle.store_weights(None), Handle.detach])
def test_what_was_loaded_comes_back(way_back: Any, pipe: Any, accelerate: Accelerate, stock: Stock) -> None:
    before, objects = bits(pipe), linear(pipe)
    handle = accelerate(pipe)
    handle.store_weights("int8")
    way_back(handle)
    assert all(now is loaded for now, loaded in zip(linear(pipe), objects, strict=True))
    assert same(bits(pipe), before)
    assert models.difference(models.picture(pipe, steps=STEPS), stock(steps=STEPS)) <= LIMIT


@pytest.mark.parametrize("kind", FORMATS)
def test_loras_are_fused_before_weights_are_stored(kind: str, pipe: Any, accelerate: Accelerate) -> None:
    other, lora = models.own_pipeline(), lora_for(pipe)
    accelerate(other).set_loras([(lora, 0.7, 0.8)])
    expected = codes_of(linear(other), kind)
    handle = accelerate(pipe)
    handle.store_weights(kind)
    handle.set_loras([(lora, 0.7, 0.8)])
    assert same(codes(linear(pipe)), expected)


def test_loras_stay_when_weights_are_stored_and_brought_back(pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    before = bits(pipe)
    handle.set_loras([(lora_for(pipe), 0.7, 0.8)])
    fused, plain = bits(pipe), [weight.clone() for weight in linear(pipe)]
    handle.store_weights("int8")
    assert same(codes(linear(pipe)), codes_of(plain, "int8"))
    handle.store_weights(None)
    assert same(bits(pipe), fused)
    handle.set_loras([])
    assert same(bits(pipe), before)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_loras_give_the_stored_weights_back(kind: str, pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    handle.store_weights(kind)
    before = codes(linear(pipe))
    for count in (1, 5, 0):
        handle.set_loras([(lora_for(pipe, seed), 0.3, 0.4) for seed in range(count)])
        assert same(codes(linear(pipe)), before) == (count == 0)


def test_detach_takes_loras_off_too(pipe: Any, accelerate: Accelerate) -> None:
    before = bits(pipe)
    handle = accelerate(pipe)
    handle.set_loras([(lora_for(pipe), 1.0, 1.0)])
    handle.store_weights("float8")
    handle.set_loras([(lora_for(pipe, 2), 1.0, 1.0)])
    handle.detach()
    assert same(bits(pipe), before)


def test_loras_on_their_way_are_waited_for(
    pipe: Any, accelerate: Accelerate, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, lora = models.own_pipeline(), lora_for(pipe)
    accelerate(other).set_loras([(lora, 1.0, 1.0)])
    gate, right = threading.Event(), library.read_network
    monkeypatch.setattr(library, "read_network", lambda source: gate.wait(10) and right(source))
    handle = accelerate(pipe)
    handle.start_loras([(lora, 1.0, 1.0)])
    threading.Timer(0.2, gate.set).start()
    handle.store_weights("int8")
    assert same(codes(linear(pipe)), codes_of(linear(other), "int8"))


def test_a_wrong_lora_leaves_stored_weights_as_they_were(pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    handle.store_weights("int8")
    handle.set_loras([(lora_for(pipe), 1.0, 1.0)])
    before = codes(linear(pipe))
    with pytest.raises(LoraError, match="another architecture"):
        handle.set_loras([(lora_for(models.pipeline("sdxl")), 1.0, 1.0)])
    assert same(codes(linear(pipe)), before)


def test_a_pipeline_that_moves_to_another_dtype_goes_on(pipe: Any, accelerate: Accelerate) -> None:
    expected = [weight.to(torch.bfloat16) for weight in bits(pipe)]
    handle = accelerate(pipe)
    handle.store_weights("float8")
    pipe.to(torch.bfloat16)
    ours, hosts = held(handle, lambda: models.picture(pipe, steps=STEPS))
    assert models.difference(ours, hosts) < 0.05
    assert handle.report().generation.host == 0
    handle.store_weights(None)
    assert same(bits(pipe), expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_autocast_is_followed(kind: str, pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    handle.store_weights(kind)
    with torch.autocast("cpu", torch.bfloat16):
        ours, hosts = held(handle, lambda: models.picture(pipe, steps=STEPS))
    assert models.difference(ours, hosts) < 0.05
    assert handle.report().generation.host == 0


def test_a_unet_that_comes_later_is_stored_by_another_call(pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    handle.store_weights("int8")
    pipe.unet, first = models.own_pipeline().unet, pipe.unet
    assert not any(isinstance(weight, StoredWeight) for weight in pipe.unet.parameters())
    handle.store_weights("int8")
    assert all(isinstance(weight, StoredWeight) for weight in linear(pipe))
    handle.detach()
    assert not any(isinstance(w, StoredWeight) for unet in (first, pipe.unet) for w in unet.parameters())


def test_unknown_kind_is_refused_and_nothing_changes(pipe: Any, accelerate: Accelerate) -> None:
    before = bits(pipe)
    with pytest.raises(OptionError, match="store_weights: got 'int4', expected 'int8', 'float8' or None"):
        accelerate(pipe).store_weights("int4")
    assert same(bits(pipe), before)


def test_saving_a_stored_model_is_refused(pipe: Any, accelerate: Accelerate, tmp_path: Any) -> None:
    accelerate(pipe).store_weights("int8")
    with pytest.raises(StorageError, match=r"store_weights\(None\) before"):
        torch.save(pipe.unet.state_dict(), tmp_path / "unet.pt")


def test_calls_are_not_recorded_and_the_report_says_why(pipe: Any, launched: Any) -> None:  # noqa: F811
    handle = launched(pipe)
    for _ in range(4):
        called(pipe.unet)
    assert handle.report().launches.replays > 0
    handle.store_weights("int8")
    for step in (100, 200, 300, 400):
        ours, expected = held(handle, lambda step=step: called(pipe.unet, step))
        assert models.difference(ours.sample, expected.sample) <= LIMIT
    launches = handle.report().launches
    assert (launches.graphs, handle.report().generation.host) == (0, 0)
    assert "its weights are of a class of their own" in launches.reasons
