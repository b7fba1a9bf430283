"""LoRAs that are set without waiting: the picture is that of set_loras, unless it may begin without."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.lora import library
from lib_accel.lora.formats import LoraError
from tests.diffusers import models
from tests.diffusers.test_equality import Accelerate
from tests.diffusers.test_loras import bits, lora_for, same

STEPS = 4


@pytest.fixture
def pipe() -> Any:
    """A pipeline with models of its own."""
    return models.own_pipeline()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds all reading of networks back until it is set."""
    event, right = threading.Event(), library.read_network

    def read(source: Any) -> Any:
        assert event.wait(10)
        return right(source)

    monkeypatch.setattr(library, "read_network", read)
    return event


def _picture(pipe: Any) -> torch.Tensor:
    return models.picture(pipe, steps=STEPS)


def test_a_picture_waits_for_the_loras_it_must_carry(
    pipe: Any, accelerate: Accelerate, gate: threading.Event
) -> None:
    lora, handle = lora_for(pipe), accelerate(pipe)
    plain = _picture(pipe)
    handle.start_loras([(lora, 0.8, 0.8)])
    threading.Timer(0.3, gate.set).start()
    soon = _picture(pipe)
    handle.set_loras([])
    handle.set_loras([(lora, 0.8, 0.8)])
    assert torch.equal(_picture(pipe), soon)
    assert not torch.equal(soon, plain)


def test_loras_are_waited_for_while_blocks_are_switched_off(pipe: Any, accelerate: Accelerate) -> None:
    lora, handle = lora_for(pipe), accelerate(pipe, enabled=False)
    handle.start_loras([(lora, 0.8, 0.8)])
    soon = _picture(pipe)
    handle.set_loras([(lora, 0.8, 0.8)])
    assert torch.equal(_picture(pipe), soon)


def _carrying(pipe: Any) -> list[bool]:
    """Whether each call of the UNet during a picture had other weights than now."""
    seen: list[bool] = []
    weight = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    before = weight.clone()
    block = pipe.unet.mid_block
    hook = block.register_forward_pre_hook(lambda *_: seen.append(not torch.equal(weight, before)))
    try:
        _picture(pipe)
    finally:
        hook.remove()
    return seen


def test_some_steps_may_begin_without_loras_for_the_unet(
    pipe: Any, accelerate: Accelerate, gate: threading.Event
) -> None:
    handle = accelerate(pipe)
    arrival = handle.start_loras([(lora_for(pipe), 0.0, 0.8)], late_calls=3)
    calls = []

    def open_gate(*_: Any) -> None:  # before the second step, and the third then finds the set read
        calls.append(1)
        if len(calls) == 2:
            gate.set()
            arrival._fuse.result()

    hook = pipe.unet.conv_in.register_forward_pre_hook(open_gate)
    seen = _carrying(pipe)
    hook.remove()
    assert seen == [False, False, True, True]


def test_the_unet_waits_when_it_may_be_late_no_more(
    pipe: Any, accelerate: Accelerate, gate: threading.Event
) -> None:
    handle = accelerate(pipe)
    handle.start_loras([(lora_for(pipe), 0.0, 0.8)], late_calls=1)
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda *_: gate.set())
    seen = _carrying(pipe)
    hook.remove()
    assert seen == [False, True, True, True]


def test_a_prompt_waits_for_what_its_encoder_carried_before(pipe: Any, accelerate: Accelerate) -> None:
    """Even a set that may be late, and leaves text encoders alone, first takes the old one out of them."""
    handle, lora = accelerate(pipe), lora_for(pipe)
    handle.set_loras([(lora, 0.0, 0.8)])
    wanted = _picture(pipe)
    handle.set_loras([(lora, 1.0, 0.8)])
    handle.start_loras([(lora, 0.0, 0.8)], late_calls=3)
    assert torch.equal(_picture(pipe), wanted)


def test_a_compiled_unet_is_not_met_so_that_its_loras_are_waited_for(
    pipe: Any, accelerate: Accelerate
) -> None:
    lora, handle = lora_for(pipe), accelerate(pipe)
    pipe.unet.compile(backend="eager")
    handle.start_loras([(lora, 0.8, 0.8)], late_calls=3)
    carried = bits(pipe)
    handle.set_loras([])
    assert not same(bits(pipe), carried)
    handle.set_loras([(lora, 0.8, 0.8)])
    assert same(bits(pipe), carried)


def test_what_is_wrong_is_raised_by_the_call_and_a_new_set_ends_it(
    pipe: Any, accelerate: Accelerate, tmp_path: Path
) -> None:
    handle, plain = accelerate(pipe), _picture(pipe)
    arrival = handle.start_loras([(tmp_path / "absent.safetensors", 1.0, 1.0)])
    with pytest.raises(LoraError, match="absent"):
        arrival.wait()
    with pytest.raises(LoraError, match="absent"):
        _picture(pipe)
    handle.set_loras([])
    assert torch.equal(_picture(pipe), plain)


def test_the_next_set_comes_after_the_one_on_its_way(
    pipe: Any, accelerate: Accelerate, gate: threading.Event
) -> None:
    handle, before = accelerate(pipe), bits(pipe)
    one, two = lora_for(pipe, 1), lora_for(pipe, 2)
    handle.start_loras([(one, 1.0, 1.0)])
    gate.set()
    handle.start_loras([(two, 1.0, 1.0)]).wait()
    carried = bits(pipe)
    handle.set_loras([])
    handle.set_loras([(two, 1.0, 1.0)])
    assert same(bits(pipe), carried)
    handle.start_loras([(one, 1.0, 1.0)])
    handle.detach()
    assert same(bits(pipe), before)
