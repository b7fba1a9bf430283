"""LoRAs on stock diffusers' side."""

from __future__ import annotations

from typing import Any

import diffusers.utils.logging
import pytest
import torch

from lib_accel.bench import adapters
from lib_accel.bench.lora import fingerprint
from lib_accel.bench.models import pipeline
from lib_accel.bench.networks import random_network

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def pipe() -> Any:
    return pipeline("sd1")


def _networks(pipe: Any, count: int) -> list[adapters.Network]:
    return [(random_network(pipe.unet, seed=seed), 0.5 + seed) for seed in range(count)]


def test_all_networks_are_active_at_their_scales(pipe: Any) -> None:
    adapters.load(pipe, _networks(pipe, 3))
    scaling = pipe.unet.get_submodule(LAYER).scaling
    assert list(scaling.values()) == [0.5, 1.5, 2.5]


def test_every_layer_of_a_network_gets_its_adapter(pipe: Any) -> None:
    networks = _networks(pipe, 2)
    adapters.load(pipe, networks)
    layers = [module for module in pipe.unet.modules() if hasattr(module, "base_layer")]
    assert len(layers) == len(networks[0][0]) / 3


def test_loading_leaves_the_given_state_dict_as_it_was(pipe: Any) -> None:
    networks = _networks(pipe, 1)
    keys = list(networks[0][0])
    adapters.load(pipe, networks)
    assert list(networks[0][0]) == keys


def test_unloading_gives_the_same_layers_and_bits_back(pipe: Any) -> None:
    layer, bits = pipe.unet.get_submodule(LAYER), fingerprint(pipe.unet)
    adapters.load(pipe, _networks(pipe, 2))
    adapters.unload(pipe)
    assert pipe.unet.get_submodule(LAYER) is layer
    assert fingerprint(pipe.unet) == bits


def test_fused_networks_are_in_the_weights_of_plain_layers(pipe: Any) -> None:
    layer, before = pipe.unet.get_submodule(LAYER), pipe.unet.get_submodule(LAYER).weight.clone()
    adapters.load(pipe, _networks(pipe, 1))
    adapters.fuse(pipe)
    assert pipe.unet.get_submodule(LAYER) is layer
    assert not torch.allclose(layer.weight, before)


def test_loading_no_network_changes_nothing(pipe: Any) -> None:
    adapters.load(pipe, [])
    assert type(pipe.unet.get_submodule(LAYER)) is torch.nn.Linear


def test_the_libraries_speak_afterwards_as_they_did_before(pipe: Any) -> None:
    log = diffusers.utils.logging
    log.set_verbosity(log.INFO)
    adapters.load(pipe, _networks(pipe, 1))
    spoken = log.get_verbosity()
    log.set_verbosity(log.WARNING)
    assert spoken == log.INFO
