"""Which layers are stored, and that all come back as the same objects with the same bits."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from lib_accel.errors import OptionError
from lib_accel.storage import tensor
from lib_accel.storage.formats import FORMATS, StorageError
from lib_accel.storage.tensor import StoredWeight
from lib_accel.storage.weights import Storage
from tests.lora.small import Small

LINEAR = ("linear", "square", "plain")  # of a Small


class Other(nn.Linear):
    """Somebody's class, which may do anything with its weight."""


def stored_in(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_parameters() if isinstance(each, StoredWeight)]


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter, Tensor]]:
    return [(name, each, each.detach().clone()) for name, each in model.named_parameters()]


def is_as_loaded(model: nn.Module, before: list[tuple[str, nn.Parameter, Tensor]]) -> bool:
    now = dict(model.named_parameters())
    return all(now[name] is each and torch.equal(each, bits) for name, each, bits in before)


@pytest.mark.parametrize("kind", FORMATS)
def test_linear_layers_alone_are_stored(kind: str) -> None:
    model = Small()
    stored = Storage().store([("unet", model)], kind, None)
    assert stored_in(model) == [f"{name}.weight" for name in LINEAR]
    assert stored.loaded_bytes == 4 * 24 * (32 + 24 + 32)
    assert (stored.layers, stored.bytes) == (3, (24 + 4) * (32 + 24 + 32))


@pytest.mark.parametrize("name", ["unet", "controlnet", "controlnet 2", "text_encoder", "text_encoder_2"])
def test_models_that_count_are_stored(name: str) -> None:
    assert Storage().store([(name, Small())], "int8", None).layers == 3


@pytest.mark.parametrize("name", ["vae", "image_encoder", "safety_checker"])
def test_other_models_are_left(name: str) -> None:
    assert Storage().store([(name, Small())], "int8", None).layers == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_loaded_comes_back(kind: str) -> None:
    model, storage = Small(), Storage()
    before = parameters(model)
    storage.store([("unet", model)], kind, None)
    assert not is_as_loaded(model, before)
    assert storage.store([], None, None).layers == 0
    assert is_as_loaded(model, before)


def test_another_format_is_made_of_what_was_loaded() -> None:
    model, other, storage = Small(), Small(), Storage()
    storage.store([("unet", model)], "float8", None)
    storage.store([("unet", model)], "int8", None)
    Storage().store([("unet", other)], "int8", None)
    assert torch.equal(model.linear.weight, other.linear.weight)


def test_the_same_format_again_writes_nothing() -> None:
    model, storage = Small(), Storage()
    first = storage.store([("unet", model)], "int8", None)
    weight = model.linear.weight
    assert storage.store([("unet", model)], "int8", None) == first
    assert model.linear.weight is weight


def test_a_model_that_comes_later_is_stored_beside_the_first() -> None:
    first, second, storage = Small(), Small(), Storage()
    storage.store([("unet", first)], "int8", None)
    assert storage.store([("unet", first), ("controlnet", second)], "int8", None).layers == 6


def test_layers_that_cannot_be_are_left() -> None:
    model = Small()
    model.square = Other(24, 24)
    model.linear.weight = nn.Parameter(model.linear.weight.double())
    model.extra = nn.Linear(24, 32)
    model.plain.weight = model.extra.weight
    Storage().store([("unet", model)], "int8", None)
    assert stored_in(model) == []


def test_a_weight_that_another_model_reads_too_is_left() -> None:
    model, other = Small(), Small()
    other.linear.weight = model.linear.weight
    Storage().store([("unet", model), ("vae", other)], "int8", None)
    assert stored_in(model) == ["square.weight", "plain.weight"]


def test_layers_with_an_adapter_of_peft_are_left() -> None:
    model = Small()
    inject_adapter_in_model(LoraConfig(target_modules=["square"], r=2), model)
    Storage().store([("unet", model)], "int8", None)
    assert stored_in(model) == ["linear.weight", "plain.weight"]


def test_weights_on_the_meta_device_are_refused_with_the_remedy() -> None:
    model, other = Small().to("meta"), Small()
    with pytest.raises(StorageError, match=r"weights of unet are on the meta.*enable_model_cpu_offload"):
        Storage().store([("text_encoder", other), ("unet", model)], "int8", None)
    assert stored_in(other) == []


@pytest.mark.parametrize("name", ["int4", "fp8", ""])
def test_unknown_format_is_refused_with_the_known_ones(name: str) -> None:
    model = Small()
    with pytest.raises(OptionError, match="expected 'int8', 'float8' or None"):
        Storage().store([("unet", model)], name, None)
    assert stored_in(model) == []


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has storing fail after so many layers, as for lack of memory."""
    right = tensor.encode

    def after(count: int) -> None:
        left = iter(range(count))

        def encode(*args: Any) -> Any:
            if next(left, None) is None:
                monkeypatch.setattr(tensor, "encode", right)
                raise MemoryError
            return right(*args)

        monkeypatch.setattr(tensor, "encode", encode)

    return after


def test_storing_that_fails_half_way_leaves_all_as_loaded(failing: Callable[[int], None]) -> None:
    model, storage = Small(), Storage()
    before = parameters(model)
    failing(2)
    with pytest.raises(MemoryError):
        storage.store([("unet", model)], "int8", None)
    assert is_as_loaded(model, before)
    assert storage.layers == []


def test_another_format_that_fails_half_way_leaves_the_first(failing: Callable[[int], None]) -> None:
    model, storage = Small(), Storage()
    storage.store([("unet", model)], "int8", None)
    before = parameters(model)
    failing(2)
    with pytest.raises(MemoryError):
        storage.store([("unet", model)], "float8", None)
    assert all(
        torch.equal(now, bits) for (_, now, _), (_, _, bits) in zip(parameters(model), before, strict=True)
    )


def test_moves_to_another_dtype_come_out_as_without() -> None:
    model, other, storage = Small(), Small().to(torch.bfloat16), Storage()
    storage.store([("unet", model)], "int8", None)
    model.to(torch.bfloat16)
    storage.store([], None, None)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(one.dtype is two.dtype and torch.equal(one, two) for one, two in pairs)


def test_weights_that_others_replaced_are_left_and_told_of_once() -> None:
    model, storage = Small(), Storage()
    storage.store([("unet", model)], "int8", None)
    theirs = model.square.weight = nn.Parameter(torch.ones(24, 24))
    with pytest.raises(StorageError, match=r"1 layers, first unet\.square, were replaced by others"):
        storage.store([], None, None)
    assert model.square.weight is theirs
    assert stored_in(model) == []
    assert storage.store([], None, None).layers == 0


def test_a_stored_weight_of_others_is_theirs() -> None:
    model, storage, other = Small(), Storage(), Small()
    storage.store([("unet", model)], "int8", None)
    Storage().store([("unet", other)], "int8", None)
    model.square.weight = other.square.weight
    with pytest.raises(StorageError, match="replaced by others"):
        storage.store([], None, None)
    assert model.square.weight is other.square.weight


def test_a_weight_that_others_put_there_is_stored_when_asked_again() -> None:
    model, storage = Small(), Storage()
    storage.store([("unet", model)], "int8", None)
    theirs = model.square.weight = nn.Parameter(torch.ones(24, 24))
    with pytest.raises(StorageError, match="replaced by others"):
        storage.store([("unet", model)], "float8", None)
    assert stored_in(model) == [f"{name}.weight" for name in LINEAR]
    storage.store([], None, None)
    assert model.square.weight is theirs


def test_a_model_that_is_dropped_takes_what_was_loaded_along() -> None:
    model, storage = Small(), Storage()
    storage.store([("unet", model)], "int8", None)
    loaded = weakref.ref(storage.layers[0].original)
    del model
    gc.collect()
    assert loaded() is None
    assert storage.layers == []


def test_weights_made_in_inference_mode_are_stored_and_come_back() -> None:
    with torch.inference_mode():
        model = Small()
    before, storage = parameters(model), Storage()
    storage.store([("unet", model)], "int8", None)
    assert stored_in(model) == [f"{name}.weight" for name in LINEAR]
    storage.store([], None, None)
    assert is_as_loaded(model, before)
