"""Stand-ins for a GPU: tensors without memory that say they are on one, and the formula for a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.attention import case
from lib_accel.attention.case import Case
from lib_accel.device import switches

# SD1.5's largest layer on a recent GPU.
CASE = Case((9, 0), torch.float16, batch=2, heads=8, size=64, source=4096, is_aligned=True)


@contextmanager
def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Tensors that are made inside may be on "cuda", of that capability."""
    monkeypatch.setattr(case, "capability", lambda device: capability)
    with FakeTensorMode():
        yield


def tokens(
    heads: int, size: int, *, count: int = 64, source: int = 0, batch: int = 2, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (batch, count, heads * size); the latter with `source` tokens, or as many."""
    options = {"device": "cuda", "dtype": torch.float16, **options}
    return tuple(
        torch.empty(batch, n, heads * size, **options) for n in (count, source or count, source or count)
    )


def random_tokens(heads: int, size: int, *, count: int, source: int, seed: int = 0) -> tuple[Tensor, ...]:
    """The same with normally distributed values in float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, n, heads * size) for n in (count, source, source)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def by_formula(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """What a back end computes, from (batch, tokens, heads, size)."""
    scores = torch.einsum("bqhs,bkhs->bhqk", query, key) * scale
    return torch.einsum("bhqk,bkhs->bqhs", scores.softmax(-1), value)


class Record(TorchDispatchMode):
    """Notes each operation of torch, and torch's switches at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[bool, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((function._schema.name, args, kwargs or {}, switches()))
        return function(*args, **(kwargs or {}))
