"""What a Fuser wrote goes away again to the bit: by other sets, by restore, and after a failure."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch

from lib_accel.lora.formats import LoraError, read_network
from lib_accel.lora.fusion import Wanted
from tests.lora import models as make
from tests.lora import networks as spell
from tests.lora.parts import Parts, writes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_three_hundred_switches_lead_back_to_the_same_bits(parts: Parts, dtype: torch.dtype) -> None:
    parts.unet.to(dtype)
    before = parts.bits()
    networks = [parts.network(seed, rank=seed + 1) for seed in range(5)]
    choose, held = random.Random(0), set()
    for _ in range(300 if dtype is torch.float32 else 30):
        some = choose.sample(networks, choose.randint(0, 5))
        parts.fuser.fuse([Wanted(each, 1.0, choose.choice((-0.5, 0.0, 0.3, 1.0))) for each in some])
        held.add(parts.fuser.base_bytes)
    assert len(held - {0}) <= 2  # the text encoder's weights alone, then the UNet's too
    parts.fuse()
    assert parts.have(before)


def test_bases_are_those_of_touched_weights_only(parts: Parts) -> None:
    parts.fuse(parts.network(pattern=".*to_q"))
    touched = [weight for _, weight in spell.layers(parts.unet, ".*to_q")]
    assert parts.fuser.base_bytes == sum(weight.nbytes for weight in touched)


def test_restore_gives_the_same_bits_and_drops_the_bases(parts: Parts) -> None:
    before = parts.bits()
    parts.fuse(parts.network())
    assert not parts.have(before)
    parts.fuser.restore()
    assert parts.have(before)
    assert parts.fuser.base_bytes == 0


def test_restore_twice_is_as_once(parts: Parts) -> None:
    before = parts.bits()
    parts.fuse(parts.network())
    parts.fuser.restore()
    parts.fuser.restore()
    assert parts.have(before)


def test_fusing_after_restore_is_as_at_first(parts: Parts) -> None:
    network = parts.network()
    parts.fuse(network)
    first = parts.bits()
    parts.fuser.restore()
    parts.fuse(network)
    assert parts.have(first)


def test_models_are_held_weakly(parts: Parts) -> None:
    parts.fuse(parts.network())
    unet, weight = weakref.ref(parts.unet), weakref.ref(parts.weight)
    fuser = parts.fuser
    del parts.models, parts.unet
    gc.collect()
    assert unet() is None
    assert weight() is None
    assert fuser.fuse([]).layers == 12  # the text encoder's


def test_set_that_fails_half_way_is_rolled_back(parts: Parts) -> None:
    parts.fuse(parts.network(1))
    before, network = parts.bits(), parts.network(2)
    keys = list(network.layers)
    # Its numbers cannot be had, as a file's on a disk that is gone.
    layer = network.layers[keys[9]]
    lost = replace(layer, tensors={**layer.tensors, "down": layer.tensors["down"].to("meta")})
    broken = replace(network, layers={**network.layers, keys[9]: lost})
    written = writes(parts.unet)
    with pytest.raises(NotImplementedError):
        parts.fuse(broken)
    assert writes(parts.unet) != written
    assert parts.have(before)


def test_set_after_one_that_failed_is_fused_whole(parts: Parts) -> None:
    network = parts.network()
    parts.fuse(network)
    fused = parts.bits()
    other = Parts()
    test_set_that_fails_half_way_is_rolled_back(other)
    other.fuse(network)
    assert other.have(fused)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scale_that_is_no_number_is_refused(parts: Parts, scale: float) -> None:
    before = parts.bits()
    with pytest.raises(LoraError, match=r"'style 0'.*expected finite numbers"):
        parts.fuse(parts.network(), scale=scale)
    assert parts.have(before)


def test_second_network_that_does_not_fit_leaves_the_first_unwritten(parts: Parts) -> None:
    before = parts.bits()
    misfit = read_network(spell.network({"unet": make.sdxl_unet()}), "other")
    with pytest.raises(LoraError, match="'other' was made for another architecture"):
        parts.fuse(parts.network(), misfit)
    assert parts.have(before)
    assert parts.fuser.base_bytes == 0
