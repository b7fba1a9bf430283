"""What computes a block's operators is heard once, from a run of it, as long as the same choices hold."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.operators.gated_linear import GATED_LINEAR
from lib_accel.blocks.operators.operator import Tuned
from lib_accel.blocks.rules import Rules
from lib_accel.graphs.winners import Heard, to_leave_whole
from tests.fakes.tuning import Taking
from tests.graphs.small import calls, transformer

GATED = "gated linear"


class Runs:
    """Runs of a transformer block, counted."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.block, self.count, self._meanwhile = transformer(), 0, meanwhile

    def __call__(self, tuned: Tuned) -> Tensor:
        self.count += 1
        self._meanwhile()
        with torch.no_grad():
            return self.block.direct(calls(self.block)[0], Rules(tuned=tuned))


def taking() -> Taking:
    return Taking(GATED, GATED_LINEAR.plain)


def test_operators_are_told_in_turn_with_what_takes_them() -> None:
    names = ["layer norm", "attention", "linear, residual"] * 2 + ["layer norm", GATED, "linear, residual"]
    found = Heard().winners("key", taking(), Runs())
    assert found == tuple((name, "fake" if name == GATED else None) for name in names)


def test_nothing_is_told_where_plain_torch_takes_all() -> None:
    assert Heard().winners("key", Taking(), Runs()) == ()


def test_without_choices_nothing_is_run() -> None:
    runs = Runs()
    assert (Heard().winners("key", None, runs), runs.count) == ((), 0)


def test_a_block_is_run_once_for_each_key_and_choice() -> None:
    heard, runs, first, second = Heard(), Runs(), taking(), taking()
    for tuned in (first, second, first):
        for key in ("one", "other", "one"):
            heard.winners(key, tuned, runs)
    assert runs.count == 4


def test_where_there_is_no_time_only_what_is_known_is_told() -> None:
    heard, tuned = Heard(), taking()
    assert heard.winners("key", tuned, None) is None
    known = heard.winners("key", tuned, Runs())
    assert heard.winners("key", tuned, None) == known


def test_lack_of_memory_is_no_answer() -> None:
    is_full = [True]

    def end() -> None:
        if is_full:
            raise MemoryError("full")

    heard, tuned = Heard(), taking()
    assert heard.winners("key", tuned, Runs(end)) is None
    is_full.clear()
    assert heard.winners("key", tuned, Runs(end)) is not None


def test_choices_that_nobody_holds_any_more_are_forgotten() -> None:
    heard: Any = Heard()
    heard.winners("key", taking(), Runs())
    gc.collect()
    assert len(heard._known) == 0


def test_a_winner_that_fails_is_told_to_who_chose_it() -> None:
    def fail(*args: Any) -> Tensor:
        raise RuntimeError("no such kernel")

    tuned = Taking(GATED, fail)
    Heard().winners("key", tuned, Runs())
    assert tuned.failures == ["gated linear: no such kernel"]


def test_operators_with_a_winner_are_left_whole_once_each() -> None:
    winners = (("layer norm", None), ("group norm", "Triton"), (GATED, "a"), (GATED, "b"), ("unknown", "c"))
    assert to_leave_whole(winners) == (GATED, "group norm")
