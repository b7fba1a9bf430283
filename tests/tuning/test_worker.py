"""A worker holds contests for another process, and ends with it."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.blocks.operators.group_norm import GROUP_NORM, GroupNormSpec, GroupNormUse
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.proof import Verdict
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.tuning import tuner as tuner_module
from lib_accel.tuning import worker
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.contests import Contests
from lib_accel.tuning.settings import Settings, allow_tf32_in_products
from lib_accel.tuning.signature import call_of, size_class
from lib_accel.tuning.table import OPERATORS
from lib_accel.tuning.tuner import Tuner
from lib_accel.tuning.worker import Answer, answer_in, judge, packed
from tests.tuning.calls import ARGS, ENOUGH_S, QUICK, contest
from tests.tuning.rooms import ENDING, LARGE, LONELY, SCALED, TABLE, operator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _settings_come_back() -> Iterator[None]:
    before = Settings.now()
    yield
    before.take()


# One contest


def test_the_winner_is_kept() -> None:
    verdict, is_kept = judge(contest())
    assert (verdict.code, is_kept, sorted(verdict.ms)) == ("quick", True, ["quick", TORCH])


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (LARGE, "not tried: MemoryError: too large"),
        (LONELY, "not tried: LookupError: nothing but torch takes its arguments here"),
        (operator("unknown", "quick"), "not tried: KeyError: 'unknown'"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_contest_that_cannot_be_held_is_not_kept(other: Any, reason: str) -> None:
    assert judge(contest(other)) == Answer(Verdict(TORCH, reason), is_kept=False)


def test_a_contest_is_held_by_the_settings_of_who_asks() -> None:
    allow_tf32_in_products(True)
    wanted = contest()
    allow_tf32_in_products(False)
    judge(wanted)
    assert torch.backends.cuda.matmul.allow_tf32


NEEDED = 5 * 4 * 8 * 8 * 4  # five times float32 of the call's only tensor


@pytest.mark.parametrize(("free", "is_held"), [(4 * NEEDED, True), (4 * NEEDED - 1, False)])
def test_a_contest_takes_no_more_than_a_quarter_of_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, is_held: bool
) -> None:
    monkeypatch.setattr(worker, "_free_bytes", lambda device: free)
    verdict, is_kept = judge(contest())
    assert (is_kept, "MiB are free" in verdict.reason) == (is_held, not is_held)


def test_no_gradient_is_made_in_a_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(worker, "hold", lambda *args: seen.append(torch.is_grad_enabled()) or QUICK.verdict)
    judge(contest())
    assert seen == [False]


def test_a_worker_finds_our_operators() -> None:
    assert worker._operators(tuner_module._TABLE) is OPERATORS


# What is said


def test_a_contest_is_the_same_after_it_was_sent() -> None:
    source = io.BytesIO(packed(contest()))
    length = int.from_bytes(source.read(8), "big")
    assert pickle.loads(source.read(length)) == contest()
    assert source.read() == b""


def test_a_call_of_our_operators_is_the_same_after_it_was_sent() -> None:
    use = GroupNormUse(GroupNormSpec(32, 1e-5, True), True, torch.float16, None)
    call = call_of(GROUP_NORM, (torch.ones(1, 32, 8, 8), torch.ones(32), None, use))
    again = pickle.loads(pickle.dumps(call))
    assert (again, size_class(GROUP_NORM, again)) == (call, size_class(GROUP_NORM, call))


def test_an_answer_is_the_same_after_it_was_sent() -> None:
    line = json.dumps({"verdict": asdict(QUICK.verdict), "is_kept": True}).encode()
    assert answer_in(line) == QUICK


def test_contests_are_heard_until_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def end(code: int) -> None:
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    heard: list[bytes] = []
    with pytest.raises(Ended):
        worker._listen(io.BytesIO(packed(contest()) * 2), heard.append)
    assert [pickle.loads(each) for each in heard] == [contest()] * 2


# In another process


def test_contests_are_held_and_end_processes_elsewhere(tmp_path: Path) -> None:
    contests, verdicts = Contests(), Verdicts(tmp_path)
    options: dict[str, Any] = {"contests": contests, "table": TABLE, "devices": ("cpu",)}
    tuner = Tuner(verdicts, Activity(), lambda: True, lambda device: False, **options)
    for each in (ENDING, SCALED):
        tuner.note(each, ARGS)
    assert tuner.finish(ENOUGH_S)
    found = {case.operator: (case.next_chosen, case.reason) for case in tuner.report().cases}
    assert found["ending"] == (TORCH, "the program ended twice while this was tried")
    assert (found["scaled"][0], contests.fault) == ("quick", None)


_WORKER = """
import time
from lib_accel.tuning import tuner as tuner_module
from lib_accel.tuning import worker
def judge(contest):
    print("it is held", flush=True)
    time.sleep(60)
worker.judge = judge
worker.main()
"""


def test_a_worker_ends_with_the_process_that_asked() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _WORKER], cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdin.write(packed(contest())) > 0
        process.stdin.flush()
        assert process.stdout.readline() == b'{"is_ready": true}\n'
        assert process.stderr.read(10) == b"it is held"
        process.stdin.close()  # as the system does it
        assert process.wait(ENOUGH_S) == 0
        assert process.stdout.read() == b""  # what others print goes elsewhere
