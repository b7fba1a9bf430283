"""The suite of LoRAs: what each kind makes of weights, what a switch costs, that steps stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from lib_accel.bench.agreement import kind_figures
from lib_accel.bench.environment import environment
from lib_accel.bench.lora import step_operations
from lib_accel.bench.progress import Progress
from lib_accel.bench.rounding import rounding_figures
from lib_accel.bench.sides import BY_LAYER, OURS, PEFT
from lib_accel.bench.switching import CALLS, REMARKS, Plan, peak_gib, size_figures

Figures = dict[str, Any]

# Relative differences of all weights, and of the worst layer's change, above which a kind counts as wrong.
CLOSE, CLOSE_CHANGE = 1e-6, 1e-4

# How many times as long as ours a merge by layer should take on a CPU, by the number of networks.
LEAST = {"1": 1.0, "4": 3.5, "16": 5.0}

# On a GPU: at most so many times as long as a plain copy of the same bytes, up to that rank in all.
FUSE_LIMIT, FUSE_RANK = 2.5, 128


def lora_suite(plan: Plan, *, keep: Callable[[Figures], object]) -> Figures:
    """All figures of the suite in the form of its file.

    keep: given them as they are so far whenever a size is done, since a long run may be cut off.
    """
    figures: Figures = {"kinds": [], "flat": {}, "rounding": [], "switch": {}, "bandwidth": {}, "summary": {}}
    about = {"suite": "lora", **asdict(plan), "calls": CALLS, "remarks": REMARKS}
    with Progress(3 + len(plan.sizes) * (2 + len(plan.counts))) as progress:
        progress.begin("kinds and spellings")
        figures["kinds"] = kind_figures()
        progress.begin("operations of a step")
        figures["flat"] = flat_figures(plan)
        progress.begin("rounding once")
        figures["rounding"] = rounding_figures(plan.counts, plan.picture_steps)
        for name in plan.sizes:
            figures["switch"][name] = size_figures(name, plan, progress.begin)
            figures["bandwidth"][name] = figures["switch"][name].pop("bandwidth")
            figures["summary"] = summary(figures)
            figures["environment"] = environment(torch.device("cpu")) | about | {"peak_gib": peak_gib()}
            keep(figures)
    return figures


def flat_figures(plan: Plan) -> Figures:
    """Whether a call of the UNet is the same list of operations with any number of networks."""
    by_count = step_operations((0, *plan.counts))
    return {"step_ops": by_count, "holds": len({each["sha256"] for each in by_count.values()}) == 1}


def summary(figures: Mapping[str, Any]) -> Figures:
    """What follows: kinds right and wrong, how much longer others take, how near to a copy fusing is."""
    kinds = figures["kinds"]
    ratios: Figures = {}
    for name, size in figures["switch"].items():
        ratios[name] = {
            count: {side: _ratio(each, side) for side in (BY_LAYER, PEFT) if side in each}
            for count, each in size["counts"].items()
        }
    bounded = [
        each["ratio"]
        for size in figures["bandwidth"].values()
        for each in size["counts"].values()
        if each["total_rank"] <= FUSE_RANK
    ]
    return {
        "kinds_right": sum(is_right(row) for row in kinds),
        "kinds_wrong": [_called(row) for row in kinds if not is_right(row) and "refused" not in row],
        "kinds_refused": [_called(row) for row in kinds if "refused" in row],
        "flat": figures["flat"]["holds"],
        "switch_ratio": ratios,
        "switch_least": {BY_LAYER: LEAST},
        "worst_fuse_ratio": max(bounded, default=None),
        "fuse_limit": FUSE_LIMIT,
    }


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether a kind in a spelling is fused as its formula says, into all of its layers and nowhere else."""
    return (
        "refused" not in row
        and row["of_weight"] <= CLOSE
        and row["of_change"] <= CLOSE_CHANGE
        and row["layers"] == row["expected"]
        and row["strays"] == 0
        and row["restored"]
    )


def _called(row: Mapping[str, Any]) -> str:
    return f"{row['kind']} ({row['spelling']})"


def _ratio(count: Mapping[str, Any], side: str) -> float | None:
    """How many times as long as ours a side takes for a switch, files read included."""
    return float(count[side]["switch"]["s"] / count[OURS]["switch"]["s"]) if OURS in count else None
