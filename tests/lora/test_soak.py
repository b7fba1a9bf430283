"""Thousands of random switches among networks of all kinds: no drift, no growth, no half-fused set."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.lora import groups
from lib_accel.lora.formats import Network, read_network
from lib_accel.lora.fusion import Fuser, Wanted
from tests.lora import models as make
from tests.lora.small import Small, draw
from tests.lora.test_kinds import WHOLE, of

KINDS = ["LoRA", "DoRA", "LoHa", "LoKr", "full", "(IA)3", "OFT", "GLoRA"]
SCALES = (-0.7, 0.0, 0.4, 1.0)
PAGE = os.sysconf("SC_PAGE_SIZE")
KEPT = 16  # rows of strengths that lora/accumulate.py keeps


def networks() -> list[Network]:
    """Eight, each for the linear layer and, as a LoRA, for a convolution."""
    kernel = {"lora_down.weight": draw(1, 2, 8, 3, 3), "lora_up.weight": draw(2, 16, 2, 1, 1)}
    return [read_network(of("linear", WHOLE[kind]) | of("conv", kernel), name=kind) for kind in KINDS]


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE


def living_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


class Switching:
    """Random sets of the networks, one after the other."""

    def __init__(self) -> None:
        self.model, self.networks = Small(), networks()
        self.fuser = Fuser({"unet": self.model})
        self.pristine = make.bits(self.model)
        self._choose = random.Random(0)

    def some(self) -> list[Wanted]:
        chosen = self._choose.sample(self.networks, self._choose.randint(0, len(self.networks)))
        return [Wanted(each, 1.0, self._choose.choice(SCALES)) for each in chosen]

    def switch(self, times: int) -> None:
        for _ in range(times):
            self.fuser.fuse(self.some())

    def is_as_if_fused_at_once(self) -> bool:
        """Whether one more set gives the bits that it gives a model that never carried another."""
        fresh, wanted = Small(), self.some()
        self.fuser.fuse(wanted)
        Fuser({"unet": fresh}).fuse(wanted)
        return make.same_bits(make.bits(fresh), self.model)


def soak(switches: int, checks: int) -> tuple[int, int]:
    """How many tensors and bytes more there are at the end than after the first tenth."""
    switching = Switching()
    switching.switch(switches // 10)
    tensors, resident = living_tensors(), resident_bytes()
    grown = 0
    for _ in range(checks):
        switching.switch(switches * 9 // 10 // checks)
        assert switching.is_as_if_fused_at_once()
        grown = max(grown, resident_bytes() - resident)
    more = living_tensors() - tensors
    switching.fuser.fuse([])
    assert make.same_bits(switching.pristine, switching.model)
    return more, grown


def test_two_hundred_switches_neither_drift_nor_grow() -> None:
    more, grown = soak(200, checks=9)
    assert more <= KEPT
    assert grown < 16 * 2**20


@pytest.mark.slow
def test_ten_thousand_switches_neither_drift_nor_grow() -> None:
    more, grown = soak(10_000, checks=90)
    print(f"{more} tensors and {grown / 2**20:.1f} MiB more")
    assert more <= KEPT
    assert grown < 16 * 2**20


def test_sets_of_two_threads_are_each_whole() -> None:
    switching = Switching()
    sets = [switching.some() for _ in range(12)]
    expected = []
    for each in sets:
        switching.fuser.fuse(each)
        expected.append(make.bits(switching.model))

    def run(mine: list[list[Wanted]]) -> None:
        for _ in range(20):
            for each in mine:
                switching.fuser.fuse(each)

    threads = [threading.Thread(target=run, args=(sets[half::2],)) for half in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(make.same_bits(bits, switching.model) for bits in (expected[-1], expected[-2]))
    switching.fuser.fuse([])
    assert make.same_bits(switching.pristine, switching.model)


def test_sets_that_fail_anywhere_leave_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    switching = Switching()
    switching.fuser.fuse(switching.some())
    before, right = make.bits(switching.model), groups.write_sum
    wanted = [Wanted(each, 1.0, 0.3) for each in switching.networks]
    for place in range(3):  # linear weight, its bias, the convolution
        with monkeypatch.context() as patch:
            patch.setattr(groups, "write_sum", failing_once(right, place))
            with pytest.raises(MemoryError):
                switching.fuser.fuse(wanted)
        assert make.same_bits(before, switching.model)
    assert switching.is_as_if_fused_at_once()


def test_set_that_cannot_be_put_back_either_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    switching = Switching()
    switching.fuser.fuse([Wanted(switching.networks[0], 1.0, 1.0)])

    def only_without_terms(weight: Tensor, pristine: Tensor, terms: Any) -> None:
        if terms:
            weight.zero_()
            raise MemoryError
        weight.copy_(pristine)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(groups, "write_sum", only_without_terms)
        with pytest.raises(MemoryError):
            switching.fuser.fuse([Wanted(switching.networks[1], 1.0, 1.0)])
    assert make.same_bits(switching.pristine, switching.model)
    assert switching.is_as_if_fused_at_once()


def failing_once(write: Callable[..., None], place: int) -> Callable[..., None]:
    """Writes, but the call of that number, which leaves the weight half written."""
    calls = iter(range(1000))

    def call(weight: Tensor, *rest: Any) -> None:
        if next(calls) == place:
            with torch.no_grad():
                weight.flatten()[: weight.numel() // 2].zero_()
            raise MemoryError
        write(weight, *rest)

    return call
