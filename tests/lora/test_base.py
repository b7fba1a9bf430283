"""Where the pristine bits are kept: beside the weight, in pinned memory, or in any."""

from __future__ import annotations

import pytest
import torch

from lib_accel.lora import base
from lib_accel.lora.base import copier, leaves_enough

GIB = 2**30


@pytest.mark.parametrize(
    ("needed", "free", "total", "enough"),
    [
        (2, 20, 24, True),
        (2, 8, 24, True),
        (2, 7.9, 24, False),  # a quarter of the whole stays free
        (5, 75, 80, True),
        (5, 24, 80, False),
        (2, 6, 8, True),
        (3, 6, 8, False),  # four GiB stay free
    ],
)
def test_copies_stay_on_a_gpu_that_keeps_room(needed: float, free: float, total: float, enough: bool) -> None:
    assert leaves_enough(int(needed * GIB), int(free * GIB), int(total * GIB)) is enough


@pytest.mark.parametrize(("free", "copy"), [(40 * GIB, torch.clone), (3 * GIB, base._to_pinned)])
def test_free_memory_decides_where_copies_go(free: int, copy: object) -> None:
    asked = []

    def memory(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return free, 48 * GIB

    assert copier(torch.device("cuda", 1), GIB, memory) is copy
    assert asked == [torch.device("cuda", 1)]


def test_copies_of_weights_on_the_cpu_are_in_its_memory() -> None:
    weight = torch.ones(2)
    copy = copier(torch.device("cpu"), 8, lambda device: pytest.fail("no GPU was asked"))(weight)
    weight.zero_()
    assert torch.equal(copy, torch.ones(2))


def test_memory_that_cannot_be_pinned_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty_like", refuse)
    assert torch.equal(base._to_pinned(torch.ones(2)), torch.ones(2))
