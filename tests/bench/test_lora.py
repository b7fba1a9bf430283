"""What LoRAs cost: the same operations with any number, and the very bits back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_accel.bench.lora import fingerprint, lora_figures
from lib_accel.bench.suites import Effort


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return lora_figures(Effort(pairs=1, steps=2, compared_steps=2, switches=1, counts=(0, 1, 3)))


def test_the_figures_have_exactly_the_keys_of_the_file(figures: dict[str, Any]) -> None:
    keys = ["step_ops", "step_ratio", "switch_ms", "peft_switch_ms", "restore_bit_identical"]
    assert list(figures) == keys


def test_a_step_launches_the_same_operations_with_any_number_of_networks(figures: dict[str, Any]) -> None:
    none, one, three = figures["step_ops"].values()
    assert none == one == three


def test_the_operations_of_a_step_are_those_of_a_whole_unet(figures: dict[str, Any]) -> None:
    ops = figures["step_ops"]["0"]
    assert ops["count"] > 1000
    assert len(ops["sha256"]) == 64


def test_going_back_to_none_gives_the_very_bits(figures: dict[str, Any]) -> None:
    assert figures["restore_bit_identical"] is True


@pytest.mark.parametrize("part", ["step_ratio", "switch_ms", "peft_switch_ms"])
def test_what_networks_cost_is_told_for_each_number(figures: dict[str, Any], part: str) -> None:
    assert list(figures[part]) == ["1", "3"]


def test_one_changed_bit_changes_the_fingerprint() -> None:
    layer = torch.nn.Linear(2, 2)
    before = fingerprint(layer)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(9.0))
    assert fingerprint(layer) != before
