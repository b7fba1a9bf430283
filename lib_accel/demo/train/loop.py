"""One training loop for all stages: seeded, with averaged weights, resumable at any step."""

from __future__ import annotations

import copy
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

log = logging.getLogger(__name__)

_SAVE_EVERY_S = 60.0
_LOG_EVERY = 100
_CLIP_NORM = 1.0


class Lots(NamedTuple):
    """Where a step's chance comes from; the same step has the same lots in every run."""

    choice: random.Random
    noise: torch.Generator


@dataclass(frozen=True)
class Plan:
    """How long and how fast. `average` is the share of the old in the running mean of the weights."""

    name: str
    steps: int
    rate: float
    average: float = 0.998
    warm_up: int = 100
    seed: int = 7

    def rate_at(self, step: int) -> float:
        """Linear to `rate`, then half a cosine to a twentieth of it."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        share = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))

    def lots_at(self, step: int) -> Lots:
        """The lots of one step."""
        choice = random.Random(f"{self.seed} {self.name} {step}")
        return Lots(choice, torch.Generator().manual_seed(choice.getrandbits(62)))


class OutOfTime(Exception):
    """The time for this run is over; what is done is on disk."""


def train(
    plan: Plan,
    models: Mapping[str, nn.Module],
    loss: Callable[[Lots], Tensor],
    *,
    work: Path,
    deadline: float,
) -> None:
    """Trains the parameters of `models` that want a gradient, and leaves their running means in them.

    Goes on from `work`/<name>.pt, where state is kept every minute. Raises OutOfTime at `deadline`, in
    seconds of time.monotonic, after saving.
    """
    weights = {
        f"{model}.{name}": parameter
        for model, module in models.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    run = _Run(plan, weights, work / f"{plan.name}.pt")
    run.resume()
    with tqdm(total=plan.steps, initial=run.step, desc=plan.name, mininterval=10) as bar:
        while run.step < plan.steps:
            run.one_step(loss)
            bar.update()
            if run.step % _LOG_EVERY == 0:
                bar.set_postfix(loss=f"{run.mean_loss:.4f}")
                log.info("%s step %d of %d, loss %.4f", plan.name, run.step, plan.steps, run.mean_loss)
            run.save_at_times(deadline)
    run.save()
    log.info("%s is trained: %d steps in %.0f s of the processor", plan.name, run.step, run.cpu_s)
    run.take_means()


class _Run:
    """The state of a training."""

    def __init__(self, plan: Plan, weights: Mapping[str, nn.Parameter], file: Path) -> None:
        self.step = 0
        self.mean_loss = 0.0
        self.cpu_s = 0.0  # of the processor, in all runs so far
        self._plan = plan
        self._weights = weights
        self._means = {name: weight.detach().clone() for name, weight in weights.items()}
        self._optimizer = torch.optim.AdamW(weights.values(), betas=(0.9, 0.99), weight_decay=0.0)
        self._file = file
        self._saved_at, self._counted_at = time.monotonic(), time.process_time()

    def one_step(self, loss: Callable[[Lots], Tensor]) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._plan.rate_at(self.step)
        value = loss(self._plan.lots_at(self.step))
        torch.autograd.backward([value])
        nn.utils.clip_grad_norm_(self._weights.values(), _CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        share = min(self._plan.average, self.step / (self.step + 10))
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._means[name].lerp_(weight, 1 - share)
        self.mean_loss += (value.item() - self.mean_loss) / min(self.step, _LOG_EVERY)

    def save_at_times(self, deadline: float) -> None:
        now = time.monotonic()
        if now - self._saved_at > _SAVE_EVERY_S or now > deadline:
            self.save()
            self._saved_at = now
        if now > deadline:
            raise OutOfTime(f"{self._plan.name} is at step {self.step} of {self._plan.steps}")

    def save(self) -> None:
        self.cpu_s += time.process_time() - self._counted_at
        self._counted_at = time.process_time()
        state = {
            "step": self.step,
            "cpu_s": self.cpu_s,
            "loss": self.mean_loss,
            "weights": dict(self._weights),
            "means": self._means,
            "optimizer": self._optimizer.state_dict(),
        }
        part = self._file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._file)

    def resume(self) -> None:
        if not self._file.is_file():
            return
        state = torch.load(self._file, weights_only=True)
        self.step, self.mean_loss, self.cpu_s = state["step"], state["loss"], state["cpu_s"]
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(state["weights"][name])
                self._means[name].copy_(state["means"][name])
        self._optimizer.load_state_dict(copy.copy(state["optimizer"]))

    def take_means(self) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._means[name])
