"""A stored weight is a plain matrix to whatever computes with it, and nobody writes to it unknowingly."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_accel.storage.formats import FORMATS, StorageError
from lib_accel.storage.tensor import StoredWeight
from tests.storage.test_formats import matrix

X = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))


def weight(kind: str = "int8", dtype: torch.dtype = torch.float32) -> Any:
    """A parameter as a layer has it."""
    made = StoredWeight.of(matrix(dtype), FORMATS[kind], dtype, serial=7)
    return nn.Parameter(made, requires_grad=False)


def layer(kind: str = "int8") -> nn.Linear:
    made = nn.Linear(40, 24).requires_grad_(False)
    made.weight = weight(kind)
    return made


# What our blocks and the host's modules do with weights.
USES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda w: F.linear(X, w),
    "linear by names": lambda w: F.linear(X, weight=w, bias=w[:, 0]),
    "flattened": lambda w: F.linear(X, w.flatten(1)),
    "batched": lambda w: torch.baddbmm(X[:, None, :24], X.expand(3, 3, -1), w.t().expand(3, -1, -1)),
    "multiplied": lambda w: X @ w.T,
    "joined": lambda w: torch.cat([w, w]),
    "detached": lambda w: w.detach() + 1,
    "compared": lambda w: torch.tensor(torch.equal(w, w.clone())),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("is_inference", [False, True])
def test_use_is_that_of_the_matrix(use: str, kind: str, is_inference: bool) -> None:
    stored = weight(kind)
    with torch.inference_mode(is_inference):
        assert torch.equal(USES[use](stored), USES[use](stored.full()))


@pytest.mark.parametrize("kind", FORMATS)
def test_autocast_does_as_with_the_matrix(kind: str) -> None:
    stored = weight(kind)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = F.linear(X, stored), F.linear(X, stored.full())
    assert ours.dtype is torch.bfloat16
    assert torch.equal(ours, plain)


def test_products_beyond_float16_do_not_matter_where_results_are_not() -> None:
    """The codes' own product would be 127 * 10 * 5120."""
    full = torch.full((1, 5120), 0.004, dtype=torch.float16)
    stored = StoredWeight.of(full, FORMATS["int8"], torch.float16, serial=0)
    found = F.linear(torch.full((1, 5120), 10.0), stored.to(torch.float32))
    assert torch.allclose(found, torch.tensor(204.8), rtol=1e-3)
    assert bool(stored.full().isfinite().all())


# Ways to write to a weight, and what one of our own code raises.
WRITES: dict[str, Callable[[Any], Any]] = {
    "copied to": lambda w: w.copy_(matrix()),
    "scaled": lambda w: w.mul_(2),
    "by its data": lambda w: w.data.add_(1),
    "as a result": lambda w: torch.add(matrix(), 1, out=w),
    "among others": lambda w: torch._foreach_mul_([w], 2),
    "by address": lambda w: w.data_ptr(),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(StorageError, match=r"store_weights\(None\) before"):
        WRITES[name](weight())


def test_loading_weights_into_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="stored in eight bits"):
        layer().load_state_dict({"weight": matrix(), "bias": torch.zeros(24)})


def test_saving_is_refused_by_torch() -> None:
    with pytest.raises(StorageError, match=r"store_weights\(None\) before"):
        torch.save(layer().state_dict(), io.BytesIO())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_saving_is_refused_by_safetensors(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="storage"):
        save_file(layer().state_dict(), tmp_path / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_move_keeps_the_codes_and_takes_the_dtype(kind: str) -> None:
    moved, before = layer(kind), weight(kind)
    moved.to(torch.bfloat16)
    now: Any = moved.weight
    assert (type(now), now.dtype, now.serial) == (StoredWeight, torch.bfloat16, 7)
    assert torch.equal(now.full(), before.full().to(torch.bfloat16))
    assert torch.equal(now.scale, before.scale)


def test_a_move_to_another_device_takes_the_codes_along() -> None:
    moved: Any = layer().to("meta").weight
    assert (moved.device.type, moved.codes.device.type, moved.scale.device.type) == ("meta",) * 3


def test_a_copied_layer_has_codes_of_its_own() -> None:
    first = layer()
    second: Any = copy.deepcopy(first).weight
    assert isinstance(second, nn.Parameter)
    second.codes.zero_()
    assert torch.equal(first.weight, weight())


def test_a_stored_weight_says_what_it_takes() -> None:
    assert weight("float8", torch.float16).stored_bytes == 24 * 40 + 24 * 4
    assert repr(weight()) == "StoredWeight((24, 40), torch.float32 in torch.int8, cpu)"


@pytest.mark.parametrize("kind", FORMATS)
def test_replacing_writes_the_memory_that_it_has(kind: str) -> None:
    stored = weight(kind)
    codes, scale = stored.codes.data_ptr(), stored.scale.data_ptr()
    stored.replace(matrix() * 3, FORMATS[kind])
    assert torch.equal(stored.full(), StoredWeight.of(matrix() * 3, FORMATS[kind], torch.float32, 0).full())
    assert (stored.codes.data_ptr(), stored.scale.data_ptr()) == (codes, scale)
