"""Weights that lie one after the other in one memory are seen as one, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.adjacent import are_adjacent, as_one


def memory() -> Tensor:
    return torch.arange(96.0).view(12, 8)


def test_parts_of_one_memory_are_one_matrix_without_a_copy() -> None:
    whole = memory()
    joined = as_one(torch.split(whole, [2, 6, 4]))
    assert joined is not None
    assert torch.equal(joined, whole)
    assert joined.data_ptr() == whole.data_ptr()


def test_a_part_of_a_memory_may_be_the_first() -> None:
    whole = memory()
    joined = as_one((whole[4:6], whole[6:]))
    assert joined is not None
    assert torch.equal(joined, whole[4:])


def neighbours() -> list[Tensor]:
    """What an allocator may give by chance: two memories, the second of which begins where the first ends."""
    whole = memory()
    first = torch.empty(0).set_(whole[:6].clone().untyped_storage(), 0, (6, 8))
    return [first, whole[6:]]


ODD = {
    "with memories of their own": lambda m: [m[:6].clone(), m[6:].clone()],
    "neighbours of two memories": lambda m: neighbours(),
    "with a gap": lambda m: [m[:5], m[6:]],
    "in another order": lambda m: [m[6:], m[:6]],
    "one twice": lambda m: [m[:6], m[:6]],
    "of two widths": lambda m: [m[:6], m[6:].view(12, 4)],
    "of two dtypes": lambda m: [m[:6], m[6:].view(torch.int32)],
    "turned": lambda m: [m[:4], m[4:].t()],
    "of one dimension": lambda m: [m[:6].flatten(), m[6:].flatten()],
    "of a class": lambda m: [m[:6], m[6:].as_subclass(_Odd)],
    "of a class at first": lambda m: [m[:6].as_subclass(_Odd), m[6:]],
}


class _Odd(Tensor):
    pass


@pytest.mark.parametrize("name", ODD)
def test_others_are_not_one(name: str) -> None:
    weights = ODD[name](memory())
    assert as_one(weights) is None
    assert not are_adjacent(weights)


def test_where_gradients_are_asked_for_there_is_no_view() -> None:
    whole = memory().requires_grad_()
    parts = [part.detach().requires_grad_() for part in torch.split(whole, 6)]
    with torch.enable_grad():
        assert as_one(parts) is None
    with torch.no_grad():
        assert as_one(parts) is not None
    assert are_adjacent(parts)


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_inference_mode_hinders_nothing(made: bool, mode: bool) -> None:
    with torch.inference_mode(made):
        parts = torch.split(memory(), 6)
    with torch.inference_mode(mode), torch.no_grad():
        joined = as_one(parts)
    assert joined is not None
    assert joined.shape == (12, 8)
