"""A Fuser whose merges were chosen: weights of one shape at once, all or none, the same bits back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lib_accel.blocks.operators.operator import Tuned
from lib_accel.lora import fusion, groups
from lib_accel.lora.formats import Network, read_network
from lib_accel.lora.fusion import Fuser, Wanted
from lib_accel.lora.groups import Merge
from lib_accel.lora.terms import Factors
from lib_accel.storage.networks import fuser_of
from lib_accel.storage.weights import Storage
from tests.fakes.tuning import Taking
from tests.lora import networks as spell
from tests.lora.parts import Parts, writes
from tests.lora.small import Small
from tests.lora.test_kinds import WHOLE, of
from tests.lora.together import StandIn, taking


class Chosen(Parts):
    """Models whose merges are done by a stand-in."""

    def __init__(self) -> None:
        super().__init__()
        self.way = StandIn()
        self.tuned: Taking | None = taking(self.way)
        self.fuser = Fuser(self.models, tuned=lambda device: self.tuned)

    def is_as_plain(self, *networks: Network, scale: float = 1.0) -> bool:
        """Whether weights are, up to rounding, what plain torch makes of them."""
        plain = Parts()
        plain.fuse(*networks, scale=scale)
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(self.bits(), plain.bits(), strict=True))


@pytest.fixture
def chosen() -> Chosen:
    return Chosen()


def shapes(network: Network, chosen: Chosen) -> set[torch.Size]:
    changed = zip(chosen.bits(), Parts().bits(), strict=True)
    return {now.shape for now, before in changed if not torch.equal(now, before)}


def test_layers_of_one_shape_are_written_by_one_call(chosen: Chosen) -> None:
    network = chosen.network()
    chosen.fuse(network)
    assert sum(chosen.way.sizes) == len(network.layers)
    assert len(chosen.way.sizes) == len(shapes(network, chosen))
    assert chosen.is_as_plain(network)


def test_what_is_chosen_is_asked_once_a_switch() -> None:
    parts, way, asked = Parts(), taking(StandIn()), list[torch.device]()
    parts.fuser = Fuser(parts.models, tuned=lambda device: asked.append(device) or way)  # type: ignore[func-returns-value]
    for number, scale in enumerate((0.5, 1.0, 1.0), start=1):
        parts.fuse(parts.network(), scale=scale)
        assert asked == [torch.device("cpu")] * number


def test_what_is_written_together_has_its_memory_wherever_others_lay_the_weight(chosen: Chosen) -> None:
    chosen.fuse(chosen.network())
    lives = {layer.live.data_ptr(): layer.live for group in chosen.way.groups for layer in group}
    live, place = lives[chosen.weight.data_ptr()], chosen.weight.data_ptr()
    chosen.weight.data = chosen.weight.detach().clone()
    assert live.data_ptr() == place != chosen.weight.data_ptr()


def test_convolutions_are_too(chosen: Chosen) -> None:
    network = chosen.network(pattern=spell.CONVOLUTIONS)
    chosen.fuse(network)
    assert len(chosen.way.sizes) < sum(chosen.way.sizes) == len(network.layers)
    assert chosen.is_as_plain(network)


def test_many_networks_are_one_call_a_shape_in_their_order(chosen: Chosen) -> None:
    networks = [chosen.network(seed) for seed in range(3)]
    wanted = [Wanted(each, scale, scale) for each, scale in zip(networks, (0.5, 1.0, 1.5), strict=True)]
    chosen.fuser.fuse(wanted)
    assert len(chosen.way.sizes) == len(shapes(networks[0], chosen))
    pairs = [layer.pairs for group in chosen.way.groups for layer in group]
    assert all([pair.scale / each[0].scale for pair in each] == [1.0, 2.0, 3.0] for each in pairs)


def test_fewer_ranks_are_the_first_ones(chosen: Chosen) -> None:
    network, plain = chosen.network(rank=6), Parts()
    for parts in (chosen, plain):
        parts.fuser.fuse([Wanted(network, 1.0, 1.0, 2)])
    assert {pair.down.shape[0] for group in chosen.way.groups for layer in group for pair in layer.pairs} == {
        2
    }
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(chosen.bits(), plain.bits(), strict=True))


def test_no_networks_give_the_same_bits_back(chosen: Chosen) -> None:
    before = chosen.bits()
    for scale in (1.0, 0.3):
        chosen.fuse(chosen.network(), scale=scale)
    chosen.fuse()
    assert chosen.have(before)


def test_the_same_set_again_writes_nothing(chosen: Chosen) -> None:
    network = chosen.network()
    chosen.fuse(network)
    assert chosen.fuse(network).layers == 0


def test_what_others_write_after_us_is_seen(chosen: Chosen) -> None:
    network = chosen.network()
    chosen.fuse(network)
    with torch.no_grad():
        chosen.weight.add_(1.0)
    with pytest.raises(fusion.LoraError, match="written to by others"):
        chosen.fuse(network, scale=0.5)


@pytest.mark.parametrize("kind", ["DoRA", "LoHa", "(IA)3", "full"])
def test_weights_that_other_networks_change_too_are_written_alone(kind: str) -> None:
    model, way = Small(), StandIn()
    fuser = Fuser({"unet": model}, tuned=lambda device: taking(way))
    names = {"linear": "LoRA", "plain": "LoRA"}
    lora = read_network({key: each for name in names for key, each in of(name, WHOLE["LoRA"]).items()})
    other = read_network(of("linear", WHOLE[kind]))
    fuser.fuse([Wanted(lora, 1.0, 1.0), Wanted(other, 1.0, 1.0)])
    assert way.sizes == [1]


def test_terms_as_large_as_weights_are_never_there_for_many_weights(
    chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[type] = []

    def note(merges: Sequence[Merge], tuned: Tuned) -> list[str | None]:
        together.extend(type(term) for merge in merges for term in merge.terms)
        return write_together(merges, tuned)

    write_together = fusion.write_together
    monkeypatch.setattr(fusion, "write_together", note)
    model = Small()
    tensors = of("linear", WHOLE["LoHa"]) | of("plain", WHOLE["LoRA"])
    Fuser({"unet": model}, tuned=lambda device: chosen.tuned).fuse([Wanted(read_network(tensors), 1.0, 1.0)])
    assert together == [Factors]


def test_without_a_choice_every_weight_is_written_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    right, written = groups.write_sum, []
    monkeypatch.setattr(groups, "write_sum", lambda *args: written.append(args[0].shape) or right(*args))
    without, nothing_chosen = Chosen(), Chosen()
    without.tuned, nothing_chosen.tuned = None, Taking()
    networks = [without.network(seed) for seed in (1, 2)]
    without.fuse(*networks)
    before = sorted(written)
    nothing_chosen.fuse(*networks)
    assert sorted(written) == sorted(2 * before)
    assert without.have(nothing_chosen.bits())


# When the choice changes


def test_the_next_set_is_written_by_what_is_chosen_then_also_if_it_is_the_same(chosen: Chosen) -> None:
    network, chosen.tuned = chosen.network(), None
    assert chosen.fuse(network).layers == len(network.layers)
    chosen.tuned = taking(chosen.way)
    assert chosen.fuse(network).layers == sum(chosen.way.sizes) == len(network.layers)
    assert chosen.fuse(network).layers == 0


def test_back_at_plain_torch_weights_are_written_by_that(chosen: Chosen) -> None:
    network, plain = chosen.network(), Parts()
    chosen.fuse(network)
    chosen.tuned = None
    chosen.fuse(network)
    plain.fuse(network)
    assert chosen.have(plain.bits())


def test_other_choices_that_merge_as_before_write_nothing(chosen: Chosen) -> None:
    network = chosen.network()
    chosen.fuse(network)
    chosen.tuned = taking(chosen.way)
    before = writes(chosen.unet)
    assert chosen.fuse(network).layers == 0
    assert writes(chosen.unet) == before


# Faults


@pytest.mark.parametrize("group", range(3))
def test_a_set_for_which_memory_lacks_leaves_the_one_before_to_the_bit(group: int) -> None:
    chosen = Chosen()
    way = chosen.way
    network = chosen.network(1)
    chosen.fuse(network)
    before = chosen.bits()
    way.fails_at, way.error = len(way.groups) + group, MemoryError
    with pytest.raises(MemoryError):
        chosen.fuse(network, chosen.network(2))
    assert chosen.have(before)
    assert chosen.fuse(network).layers == 0


def test_a_way_that_fails_is_given_up_and_the_set_is_fused(chosen: Chosen) -> None:
    chosen.way.fails_at = 1
    network = chosen.network()
    chosen.fuse(network)
    assert chosen.tuned is not None
    assert chosen.tuned.failures == ["merge LoRAs: no kernel"]
    assert chosen.is_as_plain(network)


def test_where_not_even_the_set_before_can_be_had_there_is_none(
    chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = chosen.bits()
    chosen.fuse(chosen.network(1))

    def fail(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fusion, "write_together", fail)
    with pytest.raises(MemoryError):
        chosen.fuse(chosen.network(2))
    assert chosen.have(before)


# Memory


def test_a_set_of_many_bytes_is_written_in_portions(chosen: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    network = chosen.network()
    largest = max(layer.size_bytes for layer in network.layers.values())
    monkeypatch.setattr(fusion, "PORTION", 3 * largest)
    portions = []
    right = fusion.write_together
    monkeypatch.setattr(
        fusion, "write_together", lambda some, tuned: portions.append(some) or right(some, tuned)
    )
    chosen.fuse(network)
    sizes = [
        sum(f.numel() * 4 for each in some for term in each.terms for f in term[:2]) for some in portions
    ]
    assert len(sizes) > 2
    assert max(sizes) <= 4 * largest
    assert chosen.is_as_plain(network)


def test_stored_weights_are_stored_one_by_one() -> None:
    model, way, storage = Small(), StandIn(), Storage()
    fuser = fuser_of({"unet": model}, storage, lambda device: taking(way))
    storage.store([("unet", model)], "int8", fuser)
    fuser.fuse([Wanted(read_network(of("linear", WHOLE["LoRA"])), 1.0, 1.0)])
    assert way.sizes == []
    storage.store([("unet", model)], None, fuser)  # with which it is fused again
    assert way.sizes == [1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_writing_works_in_any_gradient_mode(chosen: Chosen, mode: Callable[[], Any]) -> None:
    chosen.unet.requires_grad_(True)
    before, network = chosen.bits(), chosen.network()
    with mode():
        chosen.fuse(network)
    assert chosen.is_as_plain(network)
    assert chosen.weight.is_leaf
    chosen.fuse()
    assert chosen.have(before)
