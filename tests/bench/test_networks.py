"""Seeded LoRAs fit the UNet that they are made for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_accel.bench.models import pipeline
from lib_accel.bench.networks import SHARE, random_network


@pytest.fixture(scope="module")
def unet() -> Any:
    return pipeline("sd1").unet


def test_equal_seeds_give_equal_bits(unet: Any) -> None:
    first, second = random_network(unet, seed=1), random_network(unet, seed=1)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_other_seeds_give_other_bits(unet: Any) -> None:
    key = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
    assert not torch.equal(random_network(unet, seed=1)[key], random_network(unet, seed=2)[key])


def test_every_layer_of_the_transformers_is_changed(unet: Any) -> None:
    layers = [
        name
        for name, module in unet.named_modules()
        if "attentions" in name and isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    alphas = [key for key in random_network(unet, seed=1) if key.endswith(".alpha")]
    assert alphas == [f"lora_unet_{name.replace('.', '_')}.alpha" for name in layers]


@pytest.mark.parametrize("layer", ["proj_in", "transformer_blocks.0.attn1.to_q"])
def test_a_weight_changes_by_about_a_tenth_of_its_size(unet: Any, layer: str) -> None:
    name = "mid_block.attentions.0." + layer
    network, weight = random_network(unet, seed=1), unet.get_submodule(name).weight
    key = "lora_unet_" + name.replace(".", "_")
    up, down = (network[f"{key}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
    assert (up @ down).std().item() == pytest.approx(SHARE * weight.std().item(), rel=0.2)


def test_a_convolutions_factors_are_convolutions(unet: Any) -> None:
    network = random_network(unet, seed=1)
    assert network["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"].dim() == 4
