"""No back end is asked about tensors that none could take, and each hears what it must know of the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.attention.case import Case, case_of, why_not
from tests.attention.place import CASE, gpu, tokens


def test_on_a_cpu_the_device_is_the_only_reason() -> None:
    assert why_not(*tokens(8, 40, device="cpu"), 8, None) == ("device is cpu, needs cuda",)


def test_nothing_is_said_against_tensors_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        assert why_not(*tokens(8, 40, source=77), 8, torch.float16) == ()


def test_rocm_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.0")
    with gpu(monkeypatch):
        assert "ROCm" in why_not(*tokens(8, 40), 8, None)[0]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"key": (2, 63, 320)}, "as many keys as values"),
        ({"query": (1, 64, 320)}, "one batch"),
        ({"query": (2, 64, 160)}, "one width"),
        ({"query": (2, 8, 64, 40)}, "needs (batch, tokens, channels)"),
        ({"query": (2, 0, 320)}, "empty"),
        ({"query": (2, 64, 324), "key": (2, 64, 324), "value": (2, 64, 324)}, "324 channels"),
    ],
)
def test_shapes_that_torch_may_stretch_are_left_to_torch(
    changed: dict[str, tuple[int, ...]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu(monkeypatch):
        named = dict(zip(("query", "key", "value"), tokens(8, 40), strict=True))
        named |= {name: torch.empty(shape, device="cuda").half() for name, shape in changed.items()}
        assert any(reason in each for each in why_not(**named, heads=8, dtype=None))


def test_dtypes_that_differ_are_a_reason_unless_they_are_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        query, key, value = tokens(8, 40)
        assert "needs one" in why_not(query.float(), key, value, 8, None)[0]
        assert why_not(query.float(), key, value, 8, torch.float16) == ()


def test_tensors_on_two_devices_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        query, key, _ = tokens(8, 40)
        assert "one device" in why_not(query, key, torch.empty(2, 64, 320).half(), 8, None)[0]


def test_gradients_are_a_reason_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        query, key, value = tokens(8, 40)
        query.requires_grad_()
        assert "gradients" in why_not(query, key, value, 8, None)[0]
        with torch.no_grad():
            assert why_not(query, key, value, 8, None) == ()


def test_a_case_is_read_from_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch, (8, 6)):
        case = case_of(*tokens(5, 80, source=77), 5, torch.bfloat16)
    assert case == Case((8, 6), torch.bfloat16, 2, 5, 80, source=77, is_aligned=True)


def test_a_case_has_the_dtype_that_the_tensors_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        assert case_of(*tokens(8, 40, dtype=torch.float32), 8, None).dtype is torch.float32


def _of_a_wider(tensor: Tensor, start: int) -> Tensor:
    wide = tensor.new_empty((*tensor.shape[:-1], tensor.shape[-1] + 16))
    return wide.narrow(-1, start, tensor.shape[-1])


@pytest.mark.parametrize(("start", "is_aligned"), [(0, True), (8, True), (4, False), (1, False)])
def test_tensors_inside_others_are_aligned_where_they_begin_so(
    start: int, is_aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu(monkeypatch):
        query, key, value = tokens(8, 40)
        assert case_of(query, _of_a_wider(key, start), value, 8, None).is_aligned is is_aligned


def test_values_that_lie_apart_are_not_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        query, key, value = tokens(8, 40)
        apart = value.new_empty((2, 64, 640)).as_strided((2, 64, 320), (64 * 640, 640, 2))
        assert not case_of(query, key, apart, 8, None).is_aligned


def test_heads_of_an_odd_size_are_not_aligned_until_they_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu(monkeypatch):
        case = case_of(*tokens(8, 36), 8, None)
    assert not case.is_aligned
    assert case.widened(64) == CASE._replace(source=64)
