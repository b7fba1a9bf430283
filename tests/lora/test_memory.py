"""Where the pristine bits and the networks' tensors are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lib_accel.lora import memory
from lib_accel.lora.formats import read_network
from lib_accel.lora.memory import Uploads, copier, leaves_enough
from lib_accel.lora.network import Layer

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


@pytest.mark.parametrize(("free", "copy"), [(40 * GIB, torch.clone), (3 * GIB, memory.to_pinned)])
def test_free_memory_decides_where_copies_go(free: int, copy: object) -> None:
    asked = []

    def tell(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return free, 48 * GIB

    assert copier(torch.device("cuda", 1), GIB, tell) is copy
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
    assert torch.equal(memory.to_pinned(torch.ones(2)), torch.ones(2))


# A device of torch's that computes nothing stands for a GPU.
FAKE = torch.device("meta")


def layers(count: int) -> list[Layer]:
    """So many, each of one MiB."""
    tensors = {f"lora_unet_{n}.diff": torch.ones(512, 512) for n in range(count)}
    return list(read_network(tensors).layers.values())


def uploads(limit_mib: int, free: int = 40 * GIB) -> Uploads:
    return Uploads(limit_mib, lambda device: (free, 48 * GIB))


def test_tensors_are_sent_to_a_gpu_once() -> None:
    (layer,), kept = layers(1), uploads(8)
    assert kept.on(FAKE, layer)["diff"].device == FAKE
    assert kept.on(FAKE, layer) is kept.on(FAKE, layer)
    assert kept.kept_bytes == 2**20


@pytest.mark.parametrize("device", [torch.device("cpu"), FAKE])
def test_tensors_that_are_there_already_are_used_as_they_are(device: torch.device) -> None:
    (layer,), kept = layers(1), uploads(8)
    there = replace(layer, tensors={role: tensor.to(device) for role, tensor in layer.tensors.items()})
    assert kept.on(device, there)["diff"] is there.tensors["diff"]
    assert kept.kept_bytes == 0


def test_tensors_that_were_not_used_for_longest_go_first() -> None:
    (one, two, three), kept = layers(3), uploads(2)
    first, second = kept.on(FAKE, one), kept.on(FAKE, two)
    kept.on(FAKE, one)
    kept.on(FAKE, three)
    assert kept.on(FAKE, one) is first
    assert kept.on(FAKE, two) is not second
    assert kept.kept_bytes == 2 * 2**20


@pytest.mark.parametrize(("limit_mib", "free"), [(0, 40 * GIB), (8, 2 * GIB)])
def test_nothing_stays_where_there_is_no_room(limit_mib: int, free: int) -> None:
    (layer,), kept = layers(1), uploads(limit_mib, free)
    assert kept.on(FAKE, layer)["diff"].device == FAKE
    assert kept.kept_bytes == 0


def test_cleared_uploads_hold_no_layer() -> None:
    (layer,), kept = layers(1), uploads(8)
    before = kept.on(FAKE, layer)
    kept.clear()
    assert kept.kept_bytes == 0
    assert kept.on(FAKE, layer) is not before
