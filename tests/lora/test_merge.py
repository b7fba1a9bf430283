"""What decides how LoRAs are merged: an operator, few classes of weights, and contests that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lib_accel.graphs.activity import Activity
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.lora import groups, merge
from lib_accel.lora.fusion import Fuser
from lib_accel.lora.merge import MERGE, MergeKind, asked, chosen_for
from lib_accel.tuning.contests import Contests
from lib_accel.tuning.signature import call_of, example
from lib_accel.tuning.tuner import Tuner
from lib_accel.tuning.worker import Answer, Contest, judge
from tests.lora.parts import Parts
from tests.lora.rivals import MERGE as CONTESTED
from tests.lora.rivals import RIVAL, TABLE, WAY

CPU, HALF = torch.device("cpu"), torch.float16
ENOUGH_S = 60.0

# Linear layers and 1x1 convolutions of the transformers in SD1's UNet, and of its text encoder: (out, in).
_WIDE = [shape for c in (320, 640, 1280) for shape in ((c, c), (c, 768), (8 * c, c), (c, 4 * c))]
SHAPES = [*_WIDE, (768, 768), (3072, 768), (768, 3072)]


def kind(shape: tuple[int, ...] = (24, 32), *ranks: int, factors: torch.dtype = HALF) -> MergeKind:
    return MergeKind.of(torch.empty(shape, dtype=HALF), factors, ranks or (16,))


# Classes


def test_a_model_has_few_classes() -> None:
    assert len({kind(shape) for shape in SHAPES}) <= 8


def test_ranks_count_by_the_nearest_power_of_two_as_they_are_multiplied() -> None:
    ranks = [kind((24, 32), *each).rank for each in ((1,), (16,), (4, 4), (17,), (128,), (100,), (16,) * 9)]
    assert ranks == [16, 16, 32, 32, 128, 128, 128]


def test_weights_of_another_sort_are_of_another_class() -> None:
    others = [kind((320, 320)), kind((24, 32), 64), kind(factors=torch.float32)]
    assert len({kind(), *others, kind()._replace(dtype=torch.float32)}) == 5


@pytest.mark.parametrize("shape", [(1, 1), (320, 320), (1280, 1280, 3, 3), (10240, 1280)])
def test_the_call_that_stands_for_a_class_is_of_its_size_and_never_large(shape: tuple[int, ...]) -> None:
    bases, ups, downs = asked(kind(shape, 100))
    count, height, width = bases.shape
    assert 0.7 < height * width / max(torch.Size(shape).numel(), 2**10) < 1.5
    assert (ups.shape, downs.shape) == ((count, height, 128), (count, 128, width))
    assert 2 <= count <= 16
    assert bases.numel() <= 2**25


def test_a_call_that_stands_for_a_class_takes_no_memory() -> None:
    for each in asked(kind((10240, 1280))):
        with pytest.raises(TypeError, match="without memory"):
            torch.neg(each)


# The operator


def test_plain_torch_adds_the_product_to_each_weight() -> None:
    bases, ups, downs = example(call_of(MERGE, asked(kind((32, 32), 16, factors=torch.float32))))
    exact = bases.double() + 0.5 * ups.double() @ downs.double()
    torch.testing.assert_close(MERGE.plain(bases, ups, downs), exact.to(HALF))


def test_on_a_cpu_there_is_no_choice() -> None:
    assert MERGE.others(*asked(kind())) == ()


def test_the_kernel_is_there_with_each_of_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge.lora_fuse, "why_not_dtypes", lambda *args: ())
    halves, singles = (MERGE.others(*asked(kind(factors=each))) for each in (HALF, torch.float32))
    assert len(halves) > 1
    assert all(each.name.startswith("Triton, Product(") for each in (*halves, *singles))
    assert {each.run.tile for each in halves} == {*merge.lora_fuse.tiles_for(HALF, 16)}


def test_the_way_of_the_kernel_launches_once_with_its_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(
        merge.lora_fuse, "launch", lambda layers, *, tile: launched.append((len(layers), tile))
    )
    tile = merge.lora_fuse.tiles_for(HALF, 16)[-1]
    way = merge.ByKernel(tile)
    way(torch.zeros(5, 4, 4), torch.zeros(5, 4, 2), torch.zeros(5, 2, 4))
    assert launched == [(5, tile)]
    assert "device is cpu, needs cuda" in way.why_not([merge.Layer(torch.zeros(2, 2), torch.zeros(2, 2), ())])


# Contests


class Judging:
    """A worker in this process."""

    def __init__(self, held: list[Contest]) -> None:
        self._held = held

    def await_ready(self, must_stop: Callable[[], bool]) -> bool:
        return True

    def ask(self, wanted: Contest, must_stop: Callable[[], bool]) -> Answer:
        self._held.append(wanted)
        return judge(wanted)

    def end(self) -> None:
        pass


class Machine:
    """One start of a program on a machine: a model, its fuser, and its tuner; the CPU is the GPU."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (merge, groups):
            monkeypatch.setattr(module, "MERGE", CONTESTED)
        self.held: list[Contest] = []
        self.contests = Contests(lambda: Judging(self.held))  # type: ignore[arg-type, return-value]
        idle = Activity(idle_after_s=0.0)
        options = {"contests": self.contests, "table": TABLE, "devices": ("cpu",)}
        self.tuner = Tuner(Verdicts(folder), idle, lambda: False, lambda device: True, **options)  # type: ignore[arg-type]
        self.parts = Parts()
        self.parts.fuser = Fuser(
            self.parts.models, tuned=lambda device: self.tuner.tuned(device, is_replayed=False)
        )
        self.network = self.parts.network()

    def picture(self, scale: float = 1.0) -> int:
        """Sets the network and has all contests held after it; how many weights the rival wrote."""
        self.tuner.apply()
        WAY.groups.clear()
        self.parts.fuse(self.network, scale=scale)
        assert self.tuner.finish(ENOUGH_S)
        return sum(WAY.sizes)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path, monkeypatch)
    yield machine
    machine.contests.close()


def test_a_winner_merges_from_the_next_picture_on_also_the_same_set(machine: Machine) -> None:
    before = machine.tuner.version
    assert machine.picture() == 0
    assert machine.picture() == len(machine.network.layers)
    assert machine.picture() == 0
    assert machine.tuner.version == before  # no recording is void


def test_a_restart_takes_the_same_from_the_first_picture_on(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scale in (1.0, 0.5):
        machine.picture(scale)
    again = Machine(tmp_path, monkeypatch)
    assert again.picture(0.5) == len(again.network.layers)
    assert not again.held
    assert again.parts.have(machine.parts.bits())


def test_contests_are_few_and_never_of_recordings(machine: Machine) -> None:
    machine.picture()
    assert len(machine.held) <= 4 < len(machine.network.layers)
    assert {each.is_launched for each in machine.held} == {False}
    case = machine.tuner.report().cases[0]
    assert (case.operator, case.next_chosen) == ("merge LoRAs", RIVAL)
    assert case.difference is not None


def test_what_was_chosen_holds_while_contests_are_held(machine: Machine) -> None:
    choices = machine.tuner.tuned(CPU, is_replayed=False)
    assert choices is not None
    machine.picture()
    (bases, _, _) = example(machine.held[0].call)
    met = MergeKind(CPU, bases.dtype, bases.dtype, bases[0].numel().bit_length() - 1, 16)
    assert chosen_for(met, choices) is None
    machine.tuner.apply()
    now = machine.tuner.tuned(CPU, is_replayed=False)
    assert now is not None
    chosen = chosen_for(met, now)
    assert chosen is not None
    assert chosen.name == RIVAL
