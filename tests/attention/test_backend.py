"""What back ends say they can take, and that padding a head, the scale and the layout change no result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.attention import xformers
from lib_accel.attention.backend import Backend, attend, why_not, widths
from lib_accel.attention.case import Case
from lib_accel.attention.table import BACKENDS, fitting
from tests.attention.place import CASE, by_formula, random_tokens

FORMULA = Backend("formula", by_formula, (8, 0), (torch.float16,), 128, (32, 64, 96), False, lambda case: [])


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_case_within_all_limits_is_taken() -> None:
    assert why_not(FORMULA, CASE) == ()
    assert why_not(FORMULA, CASE._replace(capability=(8, 0), size=128)) == ()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (CASE._replace(capability=(7, 5)), "capability (7, 5)"),
        (CASE._replace(dtype=torch.float32), "dtype is torch.float32"),
        (CASE._replace(size=136), "heads of 136"),
        (CASE._replace(is_aligned=False), "multiples of 8"),
    ],
)
def test_each_limit_is_a_reason_of_its_own(case: Case, reason: str) -> None:
    (only,) = why_not(FORMULA, case)
    assert reason in only


def test_bfloat16_needs_a_gpu_that_has_it() -> None:
    backend = FORMULA._replace(capability=(5, 0), dtypes=(torch.bfloat16,))
    case = CASE._replace(dtype=torch.bfloat16)
    assert why_not(backend, case) == ()
    assert "bfloat16" in why_not(backend, case._replace(capability=(7, 5)))[0]


@pytest.mark.usefixtures("_deterministic")
def test_only_who_says_so_is_taken_for_deterministic() -> None:
    assert "deterministic" in why_not(FORMULA, CASE)[0]
    assert why_not(FORMULA._replace(is_deterministic=True), CASE) == ()


@pytest.mark.usefixtures("_deterministic")
def test_torchs_own_kernels_but_cudnns_are_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers, "_version", lambda: "0.0.35")
    assert [backend.name for backend, _ in fitting(CASE)] == ["flash", "efficient"]


def test_all_fit_where_nothing_has_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers, "_version", lambda: "0.0.35")
    assert [backend.name for backend, _ in fitting(CASE)] == ["flash", "cuDNN", "efficient", "xformers"]


def test_reasons_of_the_back_end_itself_come_last() -> None:
    backend = FORMULA._replace(why_not=lambda case: [f"no {case.size}"])
    assert why_not(backend, CASE._replace(is_aligned=False))[1:] == ("no 64",)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(40, (64,)), (64, ()), (48, (64,)), (20, (32,)), (60, (64, 96)), (80, (96,)), (160, ())],
)
def test_heads_are_widened_to_tiles_below_their_double(size: int, expected: tuple[int, ...]) -> None:
    assert widths(FORMULA, size) == expected


def _by_torch(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    split = [tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (query, key, value)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("heads", "size"), [(8, 5), (2, 40), (1, 24), (3, 64)])
@pytest.mark.parametrize("width", [None, 64, 96])
def test_a_wider_head_gives_the_same_result(heads: int, size: int, width: int | None) -> None:
    inputs = random_tokens(heads, size, count=7, source=11)
    torch.testing.assert_close(attend(FORMULA, *inputs, heads, width), _by_torch(*inputs, heads))


@pytest.mark.parametrize("width", [None, 64])
def test_the_result_lies_together_and_is_nobodys_memory(width: int | None) -> None:
    inputs = random_tokens(2, 40, count=7, source=11)
    before = [tensor.clone() for tensor in inputs]
    result = attend(FORMULA, *inputs, 2, width)
    assert result.is_contiguous()
    result.zero_()
    assert all(map(torch.equal, inputs, before))


def test_names_of_back_ends_are_their_own() -> None:
    names = [backend.name for backend in BACKENDS]
    assert names == ["flash", "cuDNN", "efficient", "xformers"]


def test_a_back_end_that_cannot_take_a_head_may_take_it_wider() -> None:
    odd = CASE._replace(size=36, is_aligned=False)
    assert {(backend.name, width) for backend, width in fitting(odd)} >= {("flash", 64), ("efficient", 64)}
    assert all(width is not None for _, width in fitting(odd))


def test_the_largest_heads_are_for_those_who_take_them() -> None:
    assert [(backend.name, width) for backend, width in fitting(CASE._replace(size=512))] == [
        ("efficient", None)
    ]
