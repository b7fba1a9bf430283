"""The operator in plain torch is what blocks always did; the others are named, and give the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.attention import sage, table
from lib_accel.blocks.operators.attention import ATTENTION, SAGE_ATTENTION, why_not_sage
from tests.attention.place import by_formula, gpu, random_tokens, tokens


def _by_torch(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    split = [tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (query, key, value)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def _names(*args: Any) -> list[str]:
    return [implementation.name for implementation in ATTENTION.others(*args)]


@pytest.mark.parametrize(("heads", "size", "source"), [(8, 40, 77), (1, 512, 9), (10, 64, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_has_torchs_bits(heads: int, size: int, source: int, dtype: torch.dtype) -> None:
    inputs = [tensor.to(dtype) for tensor in random_tokens(heads, size, count=16, source=source)]
    result = ATTENTION.plain(*inputs, heads, None)
    assert torch.equal(result, _by_torch(*inputs, heads))
    assert result.is_contiguous()


def test_plain_casts_first() -> None:
    query, key, value = random_tokens(2, 8, count=5, source=7)
    cast = [tensor.bfloat16() for tensor in (query, key, value)]
    result = ATTENTION.plain(query, key.bfloat16(), value, 2, torch.bfloat16)
    assert torch.equal(result, _by_torch(*cast, 2))


def test_on_a_cpu_there_is_nothing_else() -> None:
    assert ATTENTION.others(*random_tokens(8, 40, count=16, source=16), 8, torch.float16) == ()


def test_sd15_has_each_kernel_with_its_heads_and_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        assert _names(*tokens(8, 80), 8, None) == [
            "flash",
            "flash, heads of 96",
            "flash, heads of 128",
            "cuDNN",
            "cuDNN, heads of 128",
            "efficient",
            "efficient, heads of 128",
        ]


@pytest.mark.parametrize(
    ("heads", "size", "expected"),
    [
        (
            8,
            40,
            [
                "flash",
                "flash, heads of 64",
                "cuDNN",
                "cuDNN, heads of 64",
                "efficient",
                "efficient, heads of 64",
            ],
        ),
        (8, 160, ["flash", "flash, heads of 192", "flash, heads of 256", "efficient"]),
        (10, 64, ["flash", "cuDNN", "efficient"]),
        (1, 512, ["efficient"]),
    ],
)
def test_names_follow_from_the_size_of_a_head(
    heads: int, size: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu(monkeypatch):
        assert _names(*tokens(heads, size, source=77), heads, torch.bfloat16) == expected


def test_names_follow_from_the_dtype_that_is_cast_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        inputs = tokens(10, 64, dtype=torch.float32)
        assert _names(*inputs, 10, None) == ["efficient"]
        assert "flash" in _names(*inputs, 10, torch.float16)


def test_an_old_gpu_has_the_efficient_kernel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch, (7, 5)):
        assert _names(*tokens(10, 64), 10, None) == ["efficient"]
        assert _names(*tokens(10, 64), 10, torch.bfloat16) == []


def test_the_same_call_is_offered_the_same_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        first, second = (ATTENTION.others(*tokens(8, 40), 8, None) for _ in range(2))
    assert all(ours is again for ours, again in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [40, 64, 80, 160])
def test_each_implementation_computes_what_plain_does(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    formulas = tuple(backend._replace(run=by_formula) for backend in table.BACKENDS)
    monkeypatch.setattr(table, "BACKENDS", formulas)
    with gpu(monkeypatch):
        offered = ATTENTION.others(*tokens(2, size), 2, None)
    inputs = random_tokens(2, size, count=7, source=11)
    assert len(offered) >= 3
    for implementation in offered:
        result = implementation.run(*inputs, 2, torch.float32)
        torch.testing.assert_close(result, ATTENTION.plain(*inputs, 2, torch.float32))


def test_tokens_and_batch_vary_from_picture_to_picture() -> None:
    assert ATTENTION.varies == ((0, 1), (0, 1), (0, 1), (), ())


@pytest.mark.parametrize(
    ("size", "source", "reason"),
    [(40, 64, None), (64, 128, None), (80, 64, None), (160, 64, "heads of 160"), (40, 77, "77 keys")],
)
def test_sage_takes_heads_that_fit_one_of_its_own(
    size: int, source: int, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sage, "_version", lambda: "1.0.6")
    with gpu(monkeypatch):
        reasons = why_not_sage(*tokens(8, size, source=source), 8, None)
    assert (reason is None and not reasons) or any(str(reason) in each for each in reasons)


def test_sage_is_not_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sage, "_version", lambda: "1.0.6")
    with gpu(monkeypatch):
        assert SAGE_ATTENTION.name not in _names(*tokens(10, 64), 10, None)


def test_sage_on_a_cpu_says_that_it_needs_a_gpu() -> None:
    assert why_not_sage(*random_tokens(2, 64, count=7, source=64), 2, None) == ("device is cpu, needs cuda",)


@pytest.mark.parametrize("size", [40, 64, 80, 128])
def test_sage_gets_heads_of_its_own_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sage, "_package", lambda: _Package(seen))
    inputs = random_tokens(2, size, count=7, source=64)
    result = SAGE_ATTENTION.run(*inputs, 2, torch.float32)
    torch.testing.assert_close(result, ATTENTION.plain(*inputs, 2, torch.float32))
    assert seen == [64 if size <= 64 else 128]


class _Package:
    def __init__(self, seen: list[int]) -> None:
        self._seen = seen

    def sageattn(self, q: Tensor, k: Tensor, v: Tensor, *, sm_scale: float, **options: Any) -> Tensor:
        self._seen.append(q.shape[-1])
        return by_formula(q, k, v, sm_scale)
