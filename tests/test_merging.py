"""What was chosen for merges of networks reaches those who merge, and only while it is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lib_accel.blocks.operators import table as of_blocks
from lib_accel.engine import Engine
from lib_accel.lora.merge import MERGE
from lib_accel.options import Options
from lib_accel.tuning import table
from tests.fakes.host import FakeHost
from tests.fakes.launching import LaunchingStudio
from tests.fakes.lora import FakeLora, layers_of, name_layers, random_network
from tests.fakes.models import inputs, run, tiny_unet
from tests.fakes.tuning import FakeTuner, Taking

CPU = torch.device("cpu")


class Host(FakeHost):
    """One that notes what it is to merge, and by what."""

    def __init__(self, lora: FakeLora) -> None:
        super().__init__(lora)
        self.merges: list[tuple[int, Any]] = []  # how many layers, and by what

    def apply_networks(self, layers: Sequence[nn.Module], merging: Any = None) -> None:
        self.merges.append((len(layers), merging))
        super().apply_networks(layers, merging)


class Tuner(FakeTuner):
    """One whose choices for calls that are never replayed are others."""

    def __init__(self) -> None:
        super().__init__()
        self.of_merges = Taking()

    def tuned(self, device: torch.device, *, is_replayed: bool = True) -> Taking:
        return self.taking if is_replayed else self.of_merges


@pytest.fixture
def lora() -> Iterator[FakeLora]:
    with FakeLora().installed() as lora:
        yield lora


def worn(lora: FakeLora) -> nn.Module:
    """A UNet that is to carry a network in each of its layers."""
    unet = tiny_unet()
    name_layers(unet)
    lora.loaded_networks = [random_network(unet, "style", seed=1, strength=0.5)]
    return unet


def test_contests_are_held_of_merges_as_of_what_blocks_call() -> None:
    assert table.OPERATORS == {**of_blocks.OPERATORS, "merge LoRAs": MERGE}


@pytest.mark.parametrize(
    ("options", "is_chosen"),
    [
        ({}, True),
        ({"code": "measured"}, True),
        ({"code": "direct"}, False),
        ({"code": "host"}, False),
        ({"enabled": False}, False),
    ],
)
def test_merges_are_chosen_where_operators_are(options: dict[str, Any], is_chosen: bool) -> None:
    host, tuner = FakeHost(), Tuner()
    host.asked = Options(**options)
    engine = Engine(host, tuner=tuner)  # type: ignore[arg-type]
    assert engine.merging(CPU) is (tuner.of_merges if is_chosen else None)


def test_nothing_is_chosen_on_a_cpu() -> None:
    assert Engine(FakeHost()).merging(CPU) is None


def test_a_whole_model_that_is_replayed_is_merged_at_once(lora: FakeLora) -> None:
    unet, host, tuner = worn(lora), Host(lora), Tuner()
    with LaunchingStudio.opened(host, tuner=tuner):
        run(unet, inputs())
        own, inner = host.merges  # the UNet's own layers, then all that its units have
        assert own[0] + inner[0] == len(layers_of(unet))
        assert {own[1], inner[1]} == {tuner.of_merges}
        run(unet, inputs())
        assert len(host.merges) == 2


def test_units_that_are_launched_by_themselves_merge_by_themselves(lora: FakeLora) -> None:
    unet, host, tuner = worn(lora), Host(lora), Tuner()
    with LaunchingStudio.opened(host, tuner=tuner, launch="eager"):
        run(unet, inputs())
    assert sum(count for count, _ in host.merges) == len(layers_of(unet))
    assert len(host.merges) == 10
    assert {merging for _, merging in host.merges} == {tuner.of_merges}


def test_other_choices_are_told_to_the_host_at_the_next_call(lora: FakeLora) -> None:
    unet, host, tuner = worn(lora), Host(lora), Tuner()
    with LaunchingStudio.opened(host, tuner=tuner, launch="eager"):
        run(unet, inputs())
        before = len(host.merges)
        tuner.of_merges = Taking()
        run(unet, inputs())
        assert len(host.merges) == 2 * before
        assert host.merges[-1][1] is tuner.of_merges


def test_a_merge_that_raises_is_tried_again(lora: FakeLora) -> None:
    unet, host = worn(lora), Host(lora)
    with LaunchingStudio.opened(host, tuner=Tuner()) as studio:
        lora.failing_layer = "diffusion_model_middle_block_0_in_layers_2"
        with pytest.raises(TypeError, match="cannot merge"):
            run(unet, inputs())
        lora.failing_layer = None
        studio.engine.attach()  # with which failures are forgotten
        run(unet, inputs())
    assert {vars(layer).get("network_current_names") for layer in layers_of(unet).values()} == {lora.wanted()}
