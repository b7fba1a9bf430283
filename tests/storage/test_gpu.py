"""Weights stored on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_accel.storage.formats import FORMATS
from tests.lora.small import Small, fused
from tests.storage.test_networks import LORA, Stores

pytestmark = pytest.mark.gpu


def stores_on_gpu() -> Any:
    stores = Stores()
    stores.model.cuda()
    return stores


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_loaded_waits_pinned_and_comes_back(kind: str) -> None:
    stores = stores_on_gpu()
    weight = stores.model.linear.weight
    stores.store(kind)
    assert weight.is_pinned()
    assert stores.model.linear.weight.codes.is_cuda
    stores.store(None)
    assert stores.model.linear.weight is weight
    assert weight.is_cuda
    assert torch.equal(weight.cpu(), Small().linear.weight)


@pytest.mark.parametrize("kind", FORMATS)
def test_use_is_that_of_the_matrix_on_a_gpu(kind: str) -> None:
    stores, x = stores_on_gpu(), torch.randn(5, 24, device="cuda")
    stores.store(kind)
    layer = stores.model.linear
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight.full(), layer.bias))


def test_storing_frees_the_memory_of_what_was_loaded() -> None:
    layer = torch.nn.Linear(4096, 4096, device="cuda", dtype=torch.float16)
    stores = Stores()
    stores.model.square = layer
    before = torch.cuda.memory_allocated()
    stores.store("int8")
    assert before - torch.cuda.memory_allocated() > 0.95 * 4096**2


def test_networks_are_fused_and_what_is_stored_stays_the_same_when_it_moves() -> None:
    stores = stores_on_gpu()
    stores.store("int8")
    for move in (lambda: None, stores.model.cpu, stores.model.cuda):
        move()
        stores.fuse()
        before = stores.model.linear.weight.codes.cpu()
        stores.fuse(LORA)
        assert not torch.equal(stores.model.linear.weight.codes.cpu(), before)
    stores.store(None)
    assert torch.allclose(stores.model.linear.weight.cpu(), fused(LORA)["linear.weight"], atol=1e-5)
    stores.fuse()
    assert torch.equal(stores.model.linear.weight.cpu(), Small().linear.weight)
