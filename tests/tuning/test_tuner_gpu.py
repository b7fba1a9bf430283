"""Contests of our operators on a CUDA device, in this process and in a worker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_accel.blocks.operators.group_norm import GROUP_NORM, GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.operator import Arguments
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.cuda_graph import CudaLauncher
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.tuning import worker
from lib_accel.tuning.contest import TORCH, hold
from lib_accel.tuning.contests import Contests
from lib_accel.tuning.settings import Settings
from lib_accel.tuning.signature import call_of, example
from lib_accel.tuning.tuner import Tuner
from lib_accel.tuning.worker import Contest

pytestmark = pytest.mark.gpu

TABLE = "lib_accel.blocks.operators.table:OPERATORS"
ENOUGH_S = 300.0  # Triton compiles each tile


def norm(size: int = 32) -> Arguments:
    """The arguments of a group norm with SiLU."""
    x = torch.randn(2, 320, size, size, device="cuda", dtype=torch.float16)
    weight = torch.randn(320, device="cuda", dtype=torch.float16)
    return (x, weight, weight, GroupNormUse(GroupNormSpec(32, 1e-5, True), True, None, None))


@pytest.mark.parametrize("is_launched", [True, False])
@torch.no_grad()
def test_a_contest_has_a_verdict_and_nobody_is_out(is_launched: bool) -> None:
    args = norm()
    verdict = hold(GROUP_NORM, args, CudaLauncher() if is_launched else None)
    rivals = [rival.name for rival in GROUP_NORM.others(*args)]
    assert verdict.code in (TORCH, *rivals)
    assert sorted(verdict.ms) == sorted([TORCH, *rivals]), verdict.reason


def test_an_example_on_the_gpu_is_like_the_call() -> None:
    args = norm()
    call = call_of(GROUP_NORM, args)
    assert call_of(GROUP_NORM, example(call)) == call


def test_a_contest_that_needs_too_much_memory_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(GROUP_NORM, norm())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    verdict, is_kept = worker.judge(Contest(TABLE, call, False, Settings.now()))
    assert (verdict.code, is_kept) == (TORCH, False)
    assert "MiB are free" in verdict.reason


def test_a_gpu_without_memory_says_nothing_of_a_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OUT_OF_MEMORY[1]("too large")

    monkeypatch.setattr(worker, "hold", refuse)
    assert not worker.judge(Contest(TABLE, call_of(GROUP_NORM, norm()), False, Settings.now())).is_kept


@torch.no_grad()
def test_a_worker_holds_contests_and_the_winner_computes_the_same(tmp_path: Path) -> None:
    tuner = Tuner(Verdicts(tmp_path), Activity(), lambda: False, lambda device: True, contests=Contests())
    args = norm()
    tuner.note(GROUP_NORM, args)
    assert tuner.finish(ENOUGH_S)
    tuner.apply()
    (case,) = tuner.report().cases
    assert case.ms, case.reason
    choices = tuner.tuned(torch.device("cuda"))
    assert choices is not None
    winner = choices.implementation(GROUP_NORM, args)
    assert (TORCH if winner is None else winner.name) == case.chosen
    result = GROUP_NORM.plain(*args) if winner is None else winner.run(*args)
    torch.testing.assert_close(result, GROUP_NORM.plain(*args), rtol=5e-3, atol=5e-3)
