"""What LoRAs cost: operations and time of a step with any number of them, and the time to switch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

from lib_accel.bench import adapters
from lib_accel.bench.jobs import JOBS, unet_call
from lib_accel.bench.models import pipeline, twin
from lib_accel.bench.networks import random_network
from lib_accel.bench.ops import digest, operations
from lib_accel.bench.stats import paired
from lib_accel.bench.suites import Case, Effort
from lib_accel.bench.timing import ACCELERATED, STOCK, Clock, Run, in_turn, time_ms, turns
from lib_accel.hosts.diffusers import accelerate

_CPU = torch.device("cpu")
_PLAIN = Case("text to image")


class Wardrobe:
    """Two pipelines of the same bits, ours and stock, and sets of LoRAs to put on them."""

    def __init__(self, most: int) -> None:
        self.ours = pipeline("sd1")
        self.stock = twin(self.ours)
        self.networks = [random_network(self.ours.unet, seed=seed) for seed in range(2 * most)]
        self.handle = accelerate(self.ours)  # stock is only loaded here, never run

    def put_on(self, networks: Sequence[dict[str, torch.Tensor]]) -> None:
        """Ours carries these networks and no others."""
        self.handle.set_loras([(network, 1.0, 1.0) for network in networks])

    def load(self, networks: Sequence[dict[str, torch.Tensor]]) -> None:
        """Stock carries these networks, as peft adapters, and no others."""
        adapters.unload(self.stock)
        adapters.load(self.stock, [(network, 1.0) for network in networks])

    def run(self, networks: int, steps: int) -> Run:
        """A run of ours with so many networks."""
        self.put_on(self.networks[:networks])
        clock = Clock(_CPU)
        JOBS["text"](self.ours, _PLAIN, steps, clock)
        return clock.run()


def lora_figures(effort: Effort) -> dict[str, Any]:
    """Figures of LoRAs in the form of the benchmark's file; the keys of each part are numbers of networks.

    `step_ratio` is ours without networks over ours with them: 1 means that they cost nothing.
    """
    counts = effort.counts
    some = [count for count in counts if count]
    with _dressing(max(counts)) as wardrobe:
        bare = fingerprint(wardrobe.ours.unet)
        step_ops = {str(count): _step_ops(wardrobe, count) for count in counts}
        step_ratio = {str(count): _step_ratio(wardrobe, count, effort) for count in some}
        switches = {str(count): _switches(wardrobe, count, effort.switches) for count in some}
        wardrobe.put_on([])
        restored = fingerprint(wardrobe.ours.unet)
    return {
        "step_ops": step_ops,
        "step_ratio": step_ratio,
        "switch_ms": {count: times[ACCELERATED] for count, times in switches.items()},
        "peft_switch_ms": {count: times[STOCK] for count, times in switches.items()},
        "restore_bit_identical": restored == bare,
    }


def step_operations(counts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """How many operations a call of the UNet is with so many networks, and a digest of their list."""
    with _dressing(max(counts)) as wardrobe:
        return {str(count): _step_ops(wardrobe, count) for count in counts}


def fingerprint(model: nn.Module) -> str:
    """A digest of the names and bits of all that the model holds."""
    bits = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        bits.update(name.encode())
        bits.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return bits.hexdigest()


def _step_ops(wardrobe: Wardrobe, count: int) -> dict[str, Any]:
    wardrobe.put_on(wardrobe.networks[:count])
    names = operations(unet_call(wardrobe.ours))
    return {"count": len(names), "sha256": digest(names)}


def _step_ratio(wardrobe: Wardrobe, count: int, effort: Effort) -> float:
    sides = {
        STOCK: lambda: wardrobe.run(0, effort.steps),
        ACCELERATED: lambda: wardrobe.run(count, effort.steps),
    }
    without, with_them = ([run.step_ms for run in runs] for runs in in_turn(sides, effort.pairs).values())
    return paired(without, with_them).ratio


def _switches(wardrobe: Wardrobe, count: int, times: int) -> dict[str, float]:
    """Milliseconds from one set of networks, in memory, to weights that carry another one of as many."""
    sets = (wardrobe.networks[:count], wardrobe.networks[count : 2 * count])
    change: dict[str, Callable[[Any], None]] = {STOCK: wardrobe.load, ACCELERATED: wardrobe.put_on}
    taken: dict[str, list[float]] = {STOCK: [], ACCELERATED: []}
    for side in change:
        change[side](sets[1])
    for side in turns(times):
        wanted = sets[len(taken[side]) % 2]
        taken[side].append(time_ms(functools.partial(change[side], wanted), _CPU))
    return {side: median(each) for side, each in taken.items()}


@contextlib.contextmanager
def _dressing(most: int) -> Iterator[Wardrobe]:
    wardrobe = Wardrobe(most)
    try:
        yield wardrobe
    finally:
        wardrobe.handle.detach()
