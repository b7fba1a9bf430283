"""Measures one case: two pipelines of the same bits, stock diffusers and ours, in turn."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from lib_accel.bench import adapters
from lib_accel.bench.comparison import picture_difference, relative_l2, to_bytes
from lib_accel.bench.jobs import JOBS
from lib_accel.bench.models import pipeline, twin
from lib_accel.bench.networks import random_network
from lib_accel.bench.stats import paired
from lib_accel.bench.suites import Case, Effort
from lib_accel.bench.timing import ACCELERATED, STOCK, Clock, Run, in_turn
from lib_accel.hosts.diffusers import Handle, accelerate

# On a CPU `auto` compiles nothing, so that measuring `direct` would measure the same twice.
CODES = {"measured": ["auto"], "same_as_auto": ["direct"]}


class Stand:
    """The two pipelines of a case, which share no module."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._job = JOBS[case.task]
        stock = pipeline(case.form, task=case.task if case.is_sampled else "text", controls=case.controls)
        self.pipes = {STOCK: stock, ACCELERATED: twin(stock)}
        networks = [random_network(stock.unet, seed=seed) for seed in range(case.networks)]
        adapters.load(stock, [(network, 1.0) for network in networks])
        if case.fused:
            adapters.fuse(stock)
        self._loras = [(network, 1.0, 1.0) for network in networks]
        self.handle: Handle | None = None

    def turn(self, side: str) -> Any:
        """The side's pipeline; on stock's turn nothing of ours is in place anywhere, class or weight."""
        if side == STOCK:
            self.leave()
        elif self.handle is None:
            self.handle = accelerate(self.pipes[side])
            self.handle.set_loras(self._loras)
        return self.pipes[side]

    def leave(self) -> None:
        """Takes ours off."""
        if self.handle is not None:
            self.handle.detach()
            self.handle = None

    def run(self, side: str, steps: int) -> tuple[Run, torch.Tensor]:
        """One run on one side and what came out."""
        pipe, clock = self.turn(side), Clock(torch.device("cpu"))
        result = self._job(pipe, self.case, steps, clock)
        return clock.run(), result

    def timed(self, side: str, steps: int) -> Run:
        """Times of one run on one side."""
        return self.run(side, steps)[0]

    def blocks(self) -> dict[str, Any]:
        """What ran since it became our turn: blocks by their speed, and why any ran at the host's."""
        assert self.handle is not None
        done = self.handle.report().as_dict()["generation"]
        return {"by_speed": done["blocks"], "reasons": done["reasons"]}

    def picture(self, side: str, result: torch.Tensor) -> torch.Tensor:
        """The run's result as a picture of (batch, 3, height, width) in -1..1, decoded by that side."""
        if self.case.task == "vae decode":
            return result
        vae = self.turn(side).vae
        with torch.no_grad():
            decoded: torch.Tensor = vae.decode(result / vae.config.scaling_factor).sample
        return decoded


def measure(case: Case, effort: Effort) -> dict[str, Any]:
    """Figures of a case, in the form of the benchmark's file."""
    with standing(case) as stand:
        runs = in_turn(
            {side: functools.partial(stand.timed, side, effort.steps) for side in stand.pipes}, effort.pairs
        )
        figures = paired(*([run.step_ms for run in runs[side]] for side in (STOCK, ACCELERATED)))
        difference, blocks = _compare(stand, effort.compared_steps)
    return {
        "name": case.name,
        "code": CODES["measured"][0],
        "launch": "eager",
        **asdict(figures),
        "blocks": blocks,
        "difference": difference,
    }


def _compare(stand: Stand, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """How far the results are apart after the steps of a whole picture, and what ran in ours."""
    results = {side: stand.run(side, steps)[1] for side in (STOCK, ACCELERATED)}
    blocks = stand.blocks()
    difference: dict[str, Any] = {"rel_l2": relative_l2(results[ACCELERATED], results[STOCK])}
    if stand.case.task != "text encoder":
        pictures = {side: to_bytes(stand.picture(side, result)) for side, result in results.items()}
        far = picture_difference(pictures[ACCELERATED], pictures[STOCK])
        difference |= {"picture_max": far[0], "picture_mean": far[1]}
    return difference, blocks


@contextlib.contextmanager
def standing(case: Case) -> Iterator[Stand]:
    """The case's pipelines for the `with` block, and nothing of ours in place after it."""
    stand = Stand(case)
    try:
        yield stand
    finally:
        stand.leave()
