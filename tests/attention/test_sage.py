"""SageAttention gets heads of a size that it has, whole blocks of keys, and tensors that it may change."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.attention import sage
from lib_accel.attention.backend import attend, why_not
from lib_accel.attention.sage import SAGE
from tests.attention.place import CASE, by_formula, random_tokens


@pytest.fixture(autouse=True)
def _is_looked_up_anew() -> Iterator[None]:
    yield
    sage._version.cache_clear()
    sage._package.cache_clear()


def _first(
    q: Tensor, k: Tensor, v: Tensor, tensor_layout: str = "HND", sm_scale: Any = None, smooth_k: bool = True
) -> Tensor:
    """As of 1.x: heads of 64, 96 or 128, and the mean is taken off the caller's keys."""
    assert (tensor_layout, q.shape[-1] in (64, 96, 128)) == ("NHD", True)
    if smooth_k:
        k -= k.mean(1, keepdim=True)
    return by_formula(q, k, v, sm_scale)


def _second(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    sm_scale: Any = None,
    return_lse: bool = False,
) -> Tensor:
    """As of 2.x, which pads heads itself."""
    assert tensor_layout == "NHD"
    return by_formula(q, k, v, q.shape[-1] ** -0.5 if sm_scale is None else sm_scale)


VERSIONS = {"1.0.6": _first, "2.2.0+cu128": _second}
versions = pytest.mark.parametrize("version", VERSIONS)


def _installed(monkeypatch: pytest.MonkeyPatch, version: str, attention: Any = None) -> None:
    package = SimpleNamespace(sageattn=attention or VERSIONS[version])
    monkeypatch.setattr(sage, "installed_version", {"sageattention": version}.get)
    monkeypatch.setattr(sage.importlib, "import_module", {"sageattention": package}.__getitem__)
    sage._version.cache_clear()
    sage._package.cache_clear()


def test_without_the_package_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sage, "installed_version", lambda module: None)
    assert why_not(SAGE, CASE) == ("sageattention is not installed",)


@versions
def test_whether_it_can_be_taken_is_found_without_an_import(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, version)
    monkeypatch.setattr(sage.importlib, "import_module", pytest.fail)
    assert why_not(SAGE, CASE) == ()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"source": 77}, "77 keys"),
        ({"source": 4096 + 32}, "4128 keys"),
        ({"size": 80}, "heads of 80"),
        ({"size": 160}, "heads of 160"),
        ({"dtype": torch.float32}, "dtype"),
        ({"capability": (7, 5)}, "capability"),
    ],
)
def test_it_says_what_it_cannot_take(
    changed: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, "1.0.6")
    assert any(reason in each for each in why_not(SAGE, CASE._replace(**changed)))


@versions
@pytest.mark.parametrize(("size", "width"), [(64, None), (40, 64), (80, 128)])
def test_it_computes_attention(
    version: str, size: int, width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, version)
    inputs = random_tokens(2, size, count=7, source=64)
    expected = by_formula(*(tensor.unflatten(2, (2, size)) for tensor in inputs), size**-0.5).flatten(2)
    torch.testing.assert_close(attend(SAGE, *inputs, 2, width), expected)


def test_the_mean_is_taken_off_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    _installed(monkeypatch, "1.0.6", lambda q, k, v, **options: seen.update(options, k=k) or q)
    attend(SAGE, *random_tokens(2, 64, count=7, source=64), 2)
    assert seen["smooth_k"] is False
    assert seen["k"].mean(1).abs().max() < 1e-12


@versions
def test_the_callers_keys_stay_as_they_are(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, version)
    inputs = random_tokens(2, 64, count=7, source=64)
    before = [tensor.clone() for tensor in inputs]
    attend(SAGE, *inputs, 2)
    assert all(map(torch.equal, inputs, before))
