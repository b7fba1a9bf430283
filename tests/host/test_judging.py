"""What the tests in a webui make of the counts and times that they read; needs no webui."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import runs, stand_in
from .__main__ import without_others
from .bench_stats import Run, interval, summary
from .compare import compare
from .outcome import ANY, CLEAN, OFF, Blocks, Outcome, Speed, host, part
from .row import group
from .rows.groups import GROUPS

DIRECT = Blocks(direct=45, host=0)
MIXED = Blocks(direct=40, host=5, reasons={"hypertile is on": 5})
LIVE = Blocks(direct=0, host=45, reasons={"lora_functional is on": 45})
NOTHING = Blocks(direct=0, host=0)


@pytest.mark.parametrize(
    ("speed", "blocks"),
    [
        (CLEAN, DIRECT),
        (part("hypertile"), MIXED),
        (host("functional"), LIVE),
        (OFF, LIVE),
        (OFF, NOTHING),
        (ANY, NOTHING),
    ],
)
def test_a_speed_that_was_asked_for_is_no_problem(speed: Speed, blocks: Blocks) -> None:
    assert speed.problems(blocks) == []


@pytest.mark.parametrize(
    ("speed", "blocks"),
    [
        (CLEAN, MIXED),
        (CLEAN, NOTHING),
        (part("hypertile"), DIRECT),
        (part("token merging"), MIXED),
        (part("functional"), LIVE),
        (host("functional"), MIXED),
        (host("functional"), NOTHING),
        (OFF, MIXED),
    ],
)
def test_another_speed_is_a_problem(speed: Speed, blocks: Blocks) -> None:
    assert speed.problems(blocks)


def test_a_problem_names_the_reason_that_was_given() -> None:
    assert "5x hypertile is on" in "; ".join(CLEAN.problems(MIXED))


def test_a_part_that_did_not_run_directly_is_a_problem() -> None:
    told = '{"Decoder": 2, "CLIPEncoderLayer": 0}'
    assert runs.problems(("decoder",), told) == []
    assert runs.problems(("decoder", "clip", "encoder"), told) == [
        "no clip ran directly",
        "no encoder ran directly",
    ]


@pytest.mark.parametrize(
    ("numbers", "problems"),
    [
        ([100.0, 1.0], []),
        ([100.0005, 1.0], []),
        ([100.0, 1.002], ["numbers differ by 2.0e-05 of the largest"]),
        ([100.0], ["stock gave 2 numbers, ours 1"]),
        ([100.0, np.nan], ["numbers differ by nan of the largest"]),
    ],
)
def test_numbers_may_differ_by_rounding_only(numbers: list[float], problems: list[str]) -> None:
    stock, ours = (Outcome("", values=np.float32(each)) for each in ([100.0, 1.0], numbers))
    assert compare("", "", stock, ours).problems == problems


@pytest.mark.parametrize(
    ("name", "replays", "problems"),
    [
        ("lora", 12, []),
        ("lora", 0, ["nothing was replayed: {'hooks': 3}"]),
        ("auth", 0, []),
        ("auth", 12, ["something was replayed, although it draws no picture"]),
    ],
)
def test_a_group_must_replay_something_unless_it_says_why_not(
    name: str, replays: int, problems: list[str]
) -> None:
    launches: dict[str, Any] = {"replays": replays, "captures": 4, "reasons": {"hooks": 3}}
    line = stand_in.line(name, launches)
    assert (line.problems, line.as_json()["launches"]) == (problems, launches)


def test_each_group_that_replays_nothing_exists() -> None:
    assert {*stand_in.LEFT_OUT, *stand_in.NOTHING_TO_REPLAY} <= {group.name for group in GROUPS}


def test_what_needs_other_extensions_is_left_out_by_name() -> None:
    plain, beside = group("plain", ()), group("beside", (), others=("one", "two"))
    kept, left_out = without_others([plain, beside])
    assert kept == [plain]
    assert left_out == ["beside: left out, it needs --others FOLDER with checkouts of one, two"]


def test_the_first_step_is_left_out_of_the_time_of_a_step() -> None:
    run = Run.of_notes({"asked": [0.0, 1.1, 1.3], "answered": [1.0, 1.2, 1.4]}, request_s=2.0)
    assert (run.first_ms, round(run.step_ms)) == (1000, 200)


def test_notes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="3 calls and 2 answers"):
        Run.of_notes({"asked": [0.0, 1.0, 2.0], "answered": [0.5, 1.5]}, request_s=2.0)


def test_the_interval_holds_the_median_and_is_the_same_each_time() -> None:
    ratios = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    low, high = interval(ratios)
    assert 1.0 <= low < 1.3 < high <= 1.6
    assert interval(ratios) == (low, high)


def test_a_ratio_above_one_means_that_ours_is_faster() -> None:
    slow, fast = Run(900, 300, 5), Run(700, 200, 4)
    assert summary([slow] * 3, [fast] * 3)["ratio"] == pytest.approx(1.5)
