"""Merges of the webui's networks that were chosen: layers of one shape at once, marks and backups as ever."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lib_accel.hosts import webui_lora
from lib_accel.hosts.webui_lora import MARK, Merger
from lib_accel.lora import groups
from tests.fakes import lora_extension as fake
from tests.fakes.lora_extension import Network, Networks
from tests.fakes.tuning import Taking
from tests.lora.together import StandIn, taking

SHAPES = {"a": (16, 24), "b": (8, 24), "c": (16, 24), "d": (16, 24)}


def _model() -> nn.ModuleDict:
    torch.manual_seed(5)
    layers: dict[str, Any] = {name: nn.Linear(width, height) for name, (height, width) in SHAPES.items()}
    for name, layer in layers.items():
        layer.network_layer_name = name
    return nn.ModuleDict(layers).requires_grad_(False)


def _network(name: str, seed: int, layers: str = "abcd", **others: str) -> Network:
    """A LoRA of layers; and of `others` DoRA or a full difference."""
    torch.manual_seed(seed)
    network = Network(name)
    for layer in (*layers, *others):
        height, width = SHAPES[layer]
        factors = {"lora_up.weight": torch.randn(height, 4) * 0.1, "lora_down.weight": torch.randn(4, width)}
        if others.get(layer) == "DoRA":
            factors["dora_scale"] = torch.rand(1, width) + 0.5
        full = {"diff": torch.randn(height, width) * 0.1, "diff_b": torch.randn(height) * 0.1}
        is_full = others.get(layer) == "full"
        kind = fake.NetworkModuleFull if is_full else fake.NetworkModuleLora
        network.modules[layer] = kind(network, full if is_full else factors)
    return network


class Room:
    """A model, the extension's networks, and a Merger whose merges are done by a stand-in."""

    def __init__(self, *networks: Network) -> None:
        self.model, self.merger, self.way = _model(), Merger(), StandIn()
        self.networks = Networks(*networks or [_network("style", 1)])
        self.tuned: Taking | None = taking(self.way)
        self.pristine = copy.deepcopy(self.model.state_dict())

    def merge(self, *, exact: bool = False) -> None:
        self.merger.merge([*self.model.values()], self.networks, exact=exact, tuned=self.tuned)

    def is_as_stock(self) -> bool:
        """Whether weights are, up to rounding, what the extension makes of them, with its marks."""
        stock = _model()
        for layer in stock.values():
            self.networks.network_apply_weights(layer)
        marks = [[getattr(layer, MARK, ()) for layer in each.values()] for each in (self.model, stock)]
        theirs = stock.state_dict()
        near = [
            torch.allclose(each, theirs[name], atol=1e-6) for name, each in self.model.state_dict().items()
        ]
        return marks[0] == marks[1] and all(near)

    def is_pristine(self) -> bool:
        return all(torch.equal(each, self.pristine[name]) for name, each in self.model.state_dict().items())


@pytest.fixture
def room() -> Room:
    return Room()


def test_layers_of_one_shape_are_written_by_one_call(room: Room) -> None:
    room.merge()
    assert room.way.sizes == [3, 1]
    assert room.is_as_stock()


def test_what_is_merged_is_not_merged_again(room: Room) -> None:
    room.merge()
    room.merge()
    assert room.way.sizes == [3, 1]


def test_strengths_change_all_and_no_networks_give_the_same_bits_back(room: Room) -> None:
    for strength in (1.0, 0.5):
        room.networks.loaded_networks[0].unet_multiplier = strength
        room.merge()
        assert room.is_as_stock()
    assert room.way.sizes == [3, 1] * 2
    room.networks.loaded_networks = []
    room.merge()
    assert room.is_pristine()


@pytest.mark.parametrize("kind", ["DoRA", "full"])
def test_layers_that_other_networks_change_are_merged_alone(kind: str) -> None:
    room = Room(_network("style", 1), _network("other", 2, layers="", c=kind))
    room.merge()
    assert room.way.sizes == [2, 1]
    assert room.is_as_stock()


def test_exact_merges_are_the_extensions(room: Room) -> None:
    room.merge(exact=True)
    assert room.way.sizes == []
    assert room.networks.writes == 4
    room.merge()
    room.merge(exact=True)
    assert room.is_as_stock()


def test_without_a_choice_layers_are_written_as_ever(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[torch.Size] = []
    right = groups.write_sum
    for module in (groups, webui_lora):
        monkeypatch.setattr(module, "write_sum", lambda *args: written.append(args[0].shape) or right(*args))
    results = []
    for tuned in (None, Taking()):
        room = Room()
        room.tuned = tuned
        room.merge()
        results.append(room.model.state_dict())
    assert sorted(written[:4]) == sorted(written[4:])
    assert all(torch.equal(each, results[1][name]) for name, each in results[0].items())


def test_layers_are_merged_again_where_another_way_is_chosen(room: Room) -> None:
    room.tuned = None
    room.merge()
    room.tuned = taking(room.way)
    room.merge()
    assert room.way.sizes == [3, 1]
    room.tuned = taking(room.way)  # other choices, with the same for merges
    room.merge()
    assert room.way.sizes == [3, 1]
    assert room.is_as_stock()


def test_back_at_plain_torch_layers_are_as_if_nothing_had_been_chosen(room: Room) -> None:
    plain = Room()
    plain.tuned = None
    plain.merge()
    room.merge()
    room.tuned = None
    room.merge()
    theirs = plain.model.state_dict()
    assert all(torch.equal(each, theirs[name]) for name, each in room.model.state_dict().items())


def test_what_the_extension_merged_itself_stays(room: Room) -> None:
    for layer in room.model.values():
        room.networks.network_apply_weights(layer)
    for tuned in (room.tuned, taking(room.way)):
        room.tuned = tuned
        room.merge()
    assert room.way.sizes == []


@pytest.mark.parametrize("group", [0, 1])
def test_a_lack_of_memory_restores_the_layers_and_the_next_merge_is_right(room: Room, group: int) -> None:
    room.merge()
    room.networks.loaded_networks[0].unet_multiplier = 0.5
    room.way.fails_at, room.way.error = 2 + group, MemoryError
    with pytest.raises(MemoryError):
        room.merge()
    assert room.is_pristine()
    assert not any(getattr(layer, MARK) for layer in room.model.values())
    room.merge()
    assert room.is_as_stock()


def test_a_way_that_fails_is_given_up_and_layers_are_merged(room: Room) -> None:
    room.way.fails_at = 0
    room.merge()
    assert room.tuned is not None
    assert room.tuned.failures == ["merge LoRAs: no kernel"]
    assert room.way.sizes == [1]
    assert room.is_as_stock()


def test_a_layer_that_is_named_twice_is_merged_once(room: Room) -> None:
    layer = room.model["a"]
    room.merger.merge([layer, layer], room.networks, exact=False, tuned=room.tuned)
    wanted = _model()
    room.networks.network_apply_weights(wanted["a"])
    torch.testing.assert_close(layer.weight, wanted["a"].weight)


def test_a_bias_that_another_network_had_changed_is_as_it_was() -> None:
    full, lora = _network("full", 2, layers="", a="full"), _network("style", 1)
    room = Room(full, lora)
    room.merge()
    room.networks.loaded_networks = [lora]
    room.merge()
    assert torch.equal(room.model["a"].bias, room.pristine["a.bias"])
    assert room.is_as_stock()


def test_many_bytes_of_factors_are_merged_in_portions(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webui_lora, "PORTION", 4 * 4 * (16 + 24))  # bytes of the factors of one layer
    room.merge()
    assert room.way.sizes == [1, 1, 2]
    assert room.is_as_stock()


def test_our_merges_are_given_back(room: Room) -> None:
    room.merge()
    room.merger.give_back(room.networks)
    assert room.is_pristine()
