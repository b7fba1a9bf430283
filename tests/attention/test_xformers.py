"""xformers is asked for nothing until a call is made, and gets it as it wants it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.attention import xformers
from lib_accel.attention.backend import attend, why_not
from lib_accel.attention.xformers import XFORMERS
from tests.attention.place import CASE, by_formula, random_tokens


@pytest.fixture(autouse=True)
def _is_looked_up_anew() -> Iterator[None]:
    yield
    xformers._version.cache_clear()
    xformers._ops.cache_clear()


def _installed(monkeypatch: pytest.MonkeyPatch, ops: Any) -> None:
    """xformers is there, and whoever imports its operators gets `ops`."""
    monkeypatch.setattr(xformers, "installed_version", {"xformers": "0.0.35"}.get)
    monkeypatch.setattr(xformers.importlib, "import_module", {"xformers.ops": ops}.__getitem__)
    xformers._version.cache_clear()
    xformers._ops.cache_clear()


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    assert query.ndim == 4
    return by_formula(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)


def test_without_the_package_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers, "installed_version", lambda module: None)
    assert why_not(XFORMERS, CASE) == ("xformers is not installed",)


def test_whether_it_can_be_taken_is_found_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, None)
    monkeypatch.setattr(xformers.importlib, "import_module", pytest.fail)
    assert why_not(XFORMERS, CASE) == ()


@pytest.mark.parametrize("width", [None, 64])
def test_its_attention_gets_tokens_before_heads(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, SimpleNamespace(memory_efficient_attention=_attention))
    inputs = random_tokens(2, 40, count=7, source=11)
    expected = by_formula(*(tensor.unflatten(2, (2, 40)) for tensor in inputs), 40**-0.5).flatten(2)
    torch.testing.assert_close(attend(XFORMERS, *inputs, 2, width), expected)


def test_one_that_cannot_be_imported_fails_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, None)
    monkeypatch.setattr(xformers.importlib, "import_module", _broken)
    with pytest.raises(ImportError, match="another torch"):
        attend(XFORMERS, *random_tokens(2, 40, count=7, source=11), 2)


def _broken(name: str) -> Any:
    raise ImportError(f"{name} was built for another torch")
