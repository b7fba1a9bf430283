"""Times how sets of networks are changed for others, on three sides in turn, and against a plain copy."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.bench.sides import BY_LAYER, OURS, PEFT, SIDES, Ours, Peft, Side
from lib_accel.bench.sizes import SIZES, built, weights
from lib_accel.bench.wardrobe import RANK, Wardrobe, Worn

_GIB = 2**30
_INTERPRETER_GIB = 0.9  # torch, diffusers, transformers and peft before any weight


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    sizes: tuple[str, ...] = ("sd15", "sdxl")
    counts: tuple[int, ...] = (1, 4, 16)
    rounds: int = 5
    slow_rounds: int = 3  # of peft and of 16 networks or more, which take minutes
    picture_steps: int = 20  # of the pictures by which roundings are compared
    memory_gib: float = 10.0  # what would need more is left out
    without: tuple[str, ...] = ()  # sides that are left out

    def rounds_of(self, side: str, count: int) -> int:
        """How often a side is timed with so many networks."""
        return min(self.rounds, self.slow_rounds) if side == PEFT or count >= 16 else self.rounds


BRIEF = Plan(sizes=("tiny",), counts=(1, 4), rounds=2, slow_rounds=1, picture_steps=2)  # shows that all works

Figures = dict[str, Any]
Round = Mapping[str, Mapping[str, float]]  # seconds by phase and part


def size_figures(name: str, plan: Plan, begin: Callable[[str], None]) -> Figures:
    """All of a size: what it is, the times of each number of networks, and the bandwidth.

    begin: told what begins.
    """
    with built(name) as pipe, tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
        begin(f"{name}: files")
        wardrobe = Wardrobe(pipe.unet, Path(folder), max(plan.counts))
        figures: Figures = {"about": _about(name, pipe.unet, wardrobe), "counts": {}}
        _warm(pipe, wardrobe, plan)
        for count in plan.counts:
            begin(f"{name}: {count}")
            figures["counts"][str(count)] = _count_figures(pipe, wardrobe, count, plan)
        begin(f"{name}: bandwidth")
        figures["bandwidth"] = _bandwidth(pipe, wardrobe, plan)
    return figures


def _about(name: str, unet: nn.Module, wardrobe: Wardrobe) -> Figures:
    found = weights(unet)
    return {
        "dtype": str(SIZES[name].dtype).removeprefix("torch."),
        "layers": len(found),
        "weights": sum(weight.numel() for weight in found.values()),
        "weight_bytes": _bytes(found),
        "rank": RANK,
        "file_bytes": wardrobe.file_bytes,
        "file_dtype": "float16",
    }


def _bytes(found: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in found.values())


def _warm(pipe: Any, wardrobe: Wardrobe, plan: Plan) -> None:
    """Imports, page cache, threads: one network on each side, once."""
    for name in (name for name in SIDES if name not in plan.without):
        side = SIDES[name](pipe, wardrobe)
        side.become(wardrobe.set(0, 1))
        side.close()


def _count_figures(pipe: Any, wardrobe: Wardrobe, count: int, plan: Plan) -> Figures:
    skipped = _skipped(pipe.unet, wardrobe, count, plan)
    sides = [side for side in SIDES if side not in skipped]
    rounds: dict[str, list[Round]] = {side: [] for side in sides}
    same_bits = dict.fromkeys(sides, True)
    for side in order(sides, {side: plan.rounds_of(side, count) for side in sides}):
        before = checksum(pipe.unet)
        rounds[side].append(_round(SIDES[side](pipe, wardrobe), wardrobe, count, halves=side != PEFT))
        same_bits[side] &= checksum(pipe.unet) == before
    wardrobe.forget_halves()
    return {
        **{side: _medians(taken) for side, taken in rounds.items()},
        "rounds": {side: len(taken) for side, taken in rounds.items()},
        "off_restores_bits": same_bits,
        "left_out": skipped,
    }


def order(sides: Sequence[str], rounds: Mapping[str, int]) -> list[str]:
    """A B C C B A A ..., each as often as it should be: none always comes after the same one."""
    turns = range(max(rounds.values(), default=0))
    return [
        side for turn in turns for side in (sides if turn % 2 == 0 else sides[::-1]) if turn < rounds[side]
    ]


def _skipped(unet: nn.Module, wardrobe: Wardrobe, count: int, plan: Plan) -> dict[str, str]:
    """The sides that would need more memory than is allowed, and why."""
    held, adapters = _bytes(weights(unet)), 2 * wardrobe.file_bytes * (count + 1)  # float32, and one is read
    need = {OURS: 2 * held, BY_LAYER: 2 * held, PEFT: held + adapters}
    gib = {side: each / _GIB + _INTERPRETER_GIB for side, each in need.items()}
    return {
        side: f"would need about {each:.1f} GiB, {plan.memory_gib:g} are allowed"
        for side, each in gib.items()
        if each > plan.memory_gib
    } | dict.fromkeys(plan.without, "not asked for")


def _round(side: Side, wardrobe: Wardrobe, count: int, *, halves: bool) -> Round:
    """Each kind of change once, from weights that carry nothing and back to that.

    halves: also a change of half of the layers; as networks of half of the layers, of which half stay.
    """
    one, two, extra = wardrobe.set(0, count), wardrobe.set(count, count), wardrobe.set(2 * count, 1)
    weaker = [replace(each, scale=0.7) for each in two]
    steps: dict[str, list[Worn]] = {
        "first": one,
        "switch": two,
        "scale_change": weaker,
        "one_changed": [*weaker[:-1], *extra],
        "unchanged": [*weaker[:-1], *extra],
        "off": [],
    }
    taken = {phase: side.become(worn) for phase, worn in steps.items()}
    if halves:
        kept = wardrobe.half(0, count, rest=False)
        old, new = (wardrobe.half(first, count, rest=True) for first in (0, count))
        side.become([*kept, *old])
        taken["shared"] = side.become([*kept, *new])
    side.close()
    return taken


def _medians(rounds: Sequence[Round]) -> Figures:
    """Seconds of each phase: all of it, and of its parts."""
    figures: Figures = {}
    for phase in rounds[0]:
        parts = {part: median(each[phase].get(part, 0.0) for each in rounds) for part in rounds[0][phase]}
        figures[phase] = {"s": median(sum(each[phase].values()) for each in rounds), **parts}
    return figures


def checksum(unet: nn.Module) -> int:
    """A number for the bits of the weights that networks change; other bits, almost surely another one."""
    assert all("base_layer" not in module._modules for module in unet.modules()), "adapters of peft are left"
    total = 0
    for number, weight in enumerate(weights(unet).values(), 1):
        whole = weight.contiguous().view(torch.int16 if weight.element_size() == 2 else torch.int32)
        total += number * int(whole.sum(dtype=torch.int64))
    return total


def _bandwidth(pipe: Any, wardrobe: Wardrobe, plan: Plan) -> Figures:
    """Seconds to fuse, bases there, against a plain copy of the bases into the weights.

    Copies are timed before and after all the others, since bases of our own and the library's would not fit
    into memory together at SDXL's size.
    """
    found = weights(pipe.unet)
    copies = _copies(found, plan.rounds)
    fused: dict[str, Any] = {}
    for count in sorted({*plan.counts, min(8, max(plan.counts))}):
        side = Ours(pipe, wardrobe)
        sets = [wardrobe.set(0, count), wardrobe.set(count, count)]
        side.become(sets[1])
        taken = [side.become(sets[number % 2])["fuse"] for number in range(plan.rounds_of(OURS, count))]
        side.close()
        fused[str(count)] = {"total_rank": count * wardrobe.rank, "fuse_s": median(taken)}
    copy_s = median(copies + _copies(found, plan.rounds))
    moved = 2 * _bytes(found)
    for each in fused.values():
        each["gib_s"] = moved / _GIB / each["fuse_s"]
        each["ratio"] = each["fuse_s"] / copy_s
    return {"bytes": moved, "copy_s": copy_s, "copy_gib_s": moved / _GIB / copy_s, "counts": fused}


def _copies(found: Mapping[str, Tensor], times: int) -> list[float]:
    bases = {path: weight.clone() for path, weight in found.items()}
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        for path, weight in found.items():
            weight.copy_(bases[path])
        taken.append(time.perf_counter() - began)
    return taken


def peak_gib() -> float | None:
    """The most memory that this process had at once, files' mapped pages included; None if nobody knows."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / _GIB, 2)


CALLS: dict[str, Any] = {
    OURS: ["read_network(file) for each that is new", "Fuser.fuse(networks)"],
    PEFT: list(Peft.CALLS),
    BY_LAYER: ["for each layer: weight.copy_(base); for each network: weight.copy_(weight + up @ down * s)"],
}

REMARKS = [
    "only the layers that networks change hold numbers; the UNet's others are there but empty",
    "files are in the page cache; ours: fuse is all of Fuser.fuse but plan and copy",
    "one_changed, scale_change: from the set before, at scale 0.7; off_restores_bits: after all of a round",
    "shared: half of the layers are written anew; not timed with peft, which always goes over all",
]
