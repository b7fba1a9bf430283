"""Networks come before storing: what is stored is the sum of the weight and all networks, rounded once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from lib_accel.lora.formats import LoraError, read_network
from lib_accel.lora.fusion import Fuser, Wanted
from lib_accel.storage.formats import FORMATS
from lib_accel.storage.networks import fuser_of
from lib_accel.storage.tensor import StoredWeight
from lib_accel.storage.weights import Storage
from tests.lora.small import Small, draw, fused
from tests.lora.test_kinds import WHOLE, of


class Stores:
    """A model, its storage and its fuser."""

    def __init__(self) -> None:
        self.model, self.storage = Small(), Storage()
        self.fuser = fuser_of({"unet": self.model}, self.storage)

    def store(self, kind: str | None) -> None:
        self.storage.store([("unet", self.model)], kind, self.fuser)

    def fuse(self, *networks: Mapping[str, Tensor], scale: float = 1.0) -> None:
        self.fuser.fuse([Wanted(read_network(each), scale, scale) for each in networks])

    def has(self, weight: Tensor, kind: str) -> bool:
        """Whether the linear layer has just this one, stored so."""
        expected, now = StoredWeight.of(weight, FORMATS[kind], weight.dtype, 0), self.model.linear.weight
        return torch.equal(now.codes, expected.codes) and torch.equal(now.scale, expected.scale)


LORA, OTHER = of("linear", WHOLE["LoRA"]), of("linear", WHOLE["LoHa"])
PLAIN = Small().linear.weight


@pytest.mark.parametrize("network", WHOLE)
def test_what_is_stored_is_the_rounded_sum(network: str) -> None:
    stores, tensors = Stores(), of("linear", WHOLE[network])
    stores.store("int8")
    stores.fuse(tensors, scale=0.7)
    assert stores.has(fused(tensors, scale=0.7)["linear.weight"], "int8")


@pytest.mark.parametrize("kind", FORMATS)
def test_order_of_storing_and_fusing_does_not_matter(kind: str) -> None:
    stores = Stores()
    stores.fuse(LORA)
    stores.store(kind)
    assert stores.has(fused(LORA)["linear.weight"], kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_networks_give_the_stored_weight_back(kind: str) -> None:
    stores = Stores()
    stores.store(kind)
    for networks in [(LORA,), (LORA, OTHER), (OTHER,), ()]:
        stores.fuse(*networks, scale=0.3)
    assert stores.has(PLAIN, kind)


def test_networks_are_in_what_was_loaded_when_it_is_back() -> None:
    stores = Stores()
    stores.store("int8")
    stores.fuse(LORA, OTHER)
    stores.store(None)
    assert torch.equal(stores.model.linear.weight, fused(LORA, OTHER)["linear.weight"])
    stores.fuse()
    assert torch.equal(stores.model.linear.weight, PLAIN)


def test_networks_stay_when_the_format_changes() -> None:
    stores = Stores()
    stores.store("int8")
    stores.fuse(LORA)
    stores.store("float8")
    assert stores.has(fused(LORA)["linear.weight"], "float8")


def test_what_was_loaded_is_never_written_to() -> None:
    stores = Stores()
    original = stores.model.linear.weight
    stores.store("int8")
    stores.fuse(LORA)
    assert torch.equal(original, PLAIN)


def test_a_stored_weight_needs_no_base_of_its_own() -> None:
    stores = Stores()
    stores.store("int8")
    stores.fuse(LORA)
    assert stores.fuser.base_bytes == 0


def test_a_fused_weight_stays_where_it_is_stored() -> None:
    stores = Stores()
    stores.store("int8")
    weight: Any = stores.model.linear.weight
    before = weight.codes.data_ptr(), weight.scale.data_ptr()
    stores.fuse(LORA)
    assert stores.model.linear.weight is weight
    assert (weight.codes.data_ptr(), weight.scale.data_ptr()) == before


def test_fusing_after_a_move_to_another_dtype_is_of_what_was_loaded() -> None:
    stores = Stores()
    stores.store("int8")
    stores.model.to(torch.bfloat16)
    stores.fuse(LORA)
    assert stores.has(fused(LORA)["linear.weight"], "int8")


def test_biases_and_convolutions_are_fused_as_ever() -> None:
    stores = Stores()
    network = {**of("linear", WHOLE["full"]), **of("conv", {"diff": draw(1, 16, 8, 3, 3)})}
    stores.store("int8")
    stores.fuse(network)
    plain, now = fused(network), dict(stores.model.named_parameters())
    assert all(torch.equal(now[name], plain[name]) for name in ("linear.bias", "conv.weight"))
    assert not torch.equal(now["linear.bias"], Small().linear.bias)


def test_a_set_that_fails_leaves_the_one_before() -> None:
    stores, broken = Stores(), {**OTHER}
    stores.store("int8")
    stores.fuse(LORA)
    network = read_network(broken)
    layer = next(iter(network.layers.values()))
    for role in layer.tensors:
        layer.tensors[role] = layer.tensors[role].to("meta")  # type: ignore[index]
    with pytest.raises((NotImplementedError, RuntimeError)):
        stores.fuser.fuse([Wanted(network, 1.0, 1.0)])
    assert stores.has(fused(LORA)["linear.weight"], "int8")


def test_fused_weights_that_others_replaced_stop_the_next_change() -> None:
    stores = Stores()
    stores.store("int8")
    stores.fuse(LORA)
    theirs = stores.model.linear.weight = nn.Parameter(torch.ones(32, 24))
    for change in (lambda: stores.fuse(OTHER), lambda: stores.store("float8")):
        with pytest.raises(LoraError, match=r"first unet\.linear, were replaced or written to by others"):
            change()
    assert stores.model.linear.weight is theirs


def test_fused_projections_are_refused_while_weights_are_stored() -> None:
    class FusedAttnProcessor:
        """As diffusers' is named."""

    stores = Stores()
    stores.model.processor = FusedAttnProcessor()
    stores.store("int8")
    with pytest.raises(LoraError, match="not used while projections are fused"):
        stores.fuse(LORA)


def test_networks_come_out_from_under_an_adapter_of_peft() -> None:
    stores = Stores()
    stores.store("int8")
    stores.fuse(LORA)
    weight = stores.model.linear.weight
    inject_adapter_in_model(LoraConfig(target_modules=["linear"], r=2), stores.model)
    with pytest.raises(LoraError, match="carries an adapter of peft"):
        stores.fuse(OTHER)
    stores.fuse()
    stores.model.linear = stores.model.linear.base_layer
    assert stores.model.linear.weight is weight
    assert stores.has(PLAIN, "int8")


def test_models_are_held_weakly() -> None:
    stores = Stores()
    stores.store("int8")
    stores.fuse(LORA)
    model, fuser = weakref.ref(stores.model), stores.fuser
    del stores.model
    gc.collect()
    assert model() is None
    fuser.restore()


def test_a_fuser_without_a_storage_refuses_stored_weights() -> None:
    stores = Stores()
    stores.store("int8")
    with pytest.raises(LoraError, match="it is a StoredWeight"):
        Fuser({"unet": stores.model}).fuse([Wanted(read_network(LORA), 1.0, 1.0)])
