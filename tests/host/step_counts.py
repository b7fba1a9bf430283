"""What the counts of a sampler's steps say: sums, and whether our code asks for more than the host's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .step_counter import AROUND, BLOCKS, LAUNCH, NUMBER, UNET, VIEW, WAIT, Asked

PARTS = (BLOCKS, UNET, AROUND)
OURS = "lib_accel/"  # what the places of our code begin with


class Steps:
    """The counts of some steps, as StepCounter.told gives them or as JSON makes of that."""

    def __init__(self, told: Sequence[Sequence[Sequence[Any]]]) -> None:
        self.each = [Counter({Asked(*row[:-1]): row[-1] for row in step}) for step in told]

    def total(self, by: Callable[[Asked], Any] = lambda asked: asked, **only: str) -> Counter[Any]:
        """How often each was asked for in all steps; only what has these fields, and counted `by` them."""
        found: Counter[Any] = Counter()
        for step in self.each:
            for asked, count in step.items():
                if all(getattr(asked, name) == value for name, value in only.items()):
                    found[by(asked)] += count
        return found

    def per_step(self, **only: str) -> float:
        """How much was asked for in a step, on average."""
        return sum(self.total(lambda asked: None, **only).values()) / len(self.each)


def in_words(asked: Asked) -> str:
    """What and where, in one line."""
    return f"{asked.part}: {asked.operation} at {asked.place}"


def problems(stock: Steps, ours: Steps) -> list[str]:
    """What our code asks for beyond what the host's own does outside of the blocks; empty if nothing."""
    if len(stock.each) != len(ours.each) or not stock.each:
        return [f"{len(ours.each)} steps with our code, {len(stock.each)} without"]
    found = []
    for part in (UNET, AROUND):
        for kind in (LAUNCH, NUMBER):
            with_ours, without = (steps.per_step(part=part, kind=kind) for steps in (ours, stock))
            if with_ours > without:
                found.append(
                    f"{with_ours:.1f} of kind {kind} in a step's {part}, {without:.1f} without our code"
                )
    more = ours.total(in_words, kind=WAIT) - stock.total(in_words, kind=WAIT)
    found += [f"{count} waits more: {words}" for words, count in more.items()]
    if not any(asked.place.startswith(OURS) for asked in ours.total(part=BLOCKS)):
        found.append("no operation of our code was counted")
    return found


def summary(steps: Steps) -> dict[str, Any]:
    """An average step as plain values: sums, operations by name, and outside of the blocks files by path."""
    found: dict[str, Any] = {"steps": len(steps.each)}
    for kind in (LAUNCH, NUMBER, VIEW):
        found[kind] = {part: round(steps.per_step(part=part, kind=kind), 3) for part in PARTS}
    found[WAIT] = _average(steps, in_words, kind=WAIT)
    found["operations"] = {
        part: _average(steps, lambda asked: asked.operation, part=part, kind=LAUNCH) for part in PARTS
    }
    found["files"] = {
        part: _average(steps, lambda asked: asked.place.partition(":")[0], part=part, kind=LAUNCH)
        for part in (UNET, AROUND)
    }
    return found


def _average(steps: Steps, by: Callable[[Asked], str], **only: str) -> dict[str, float]:
    total = steps.total(by, **only)
    return {words: round(count / len(steps.each), 3) for words, count in total.most_common()}
