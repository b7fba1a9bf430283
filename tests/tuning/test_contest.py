"""The winner computes the same as plain torch in less time than noise explains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators.operator import Implementation, Operator
from lib_accel.errors import CaptureError
from lib_accel.graphs import proof
from lib_accel.graphs.proof import Side, Verdict, tolerance
from lib_accel.graphs.recorder import Recorder
from lib_accel.tuning.contest import TORCH, Measure, UnsoundError, hold
from lib_accel.tuning.settings import Settings, allow_tf32_in_products

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
LIMIT = tolerance("sum", torch.float32)

Run = Callable[[Tensor], Tensor]


def plain(x: Tensor) -> Tensor:
    return x + 1


def off(share: float) -> Run:
    """A result that is off by this share of its length."""
    return lambda x: plain(x) * (1 + share)


def rivals(**runs: Run) -> Operator:
    others = [Implementation(name, run) for name, run in runs.items()]
    return Operator("sum", plain, lambda x: others, ((0,),))


def clock(**ms: float | list[float]) -> Measure:
    """Who is told to take so long: each number for a run, or one for ten."""
    seconds = {"torch": [0.01] * 10}
    for name, each in ms.items():
        seconds[name] = [value / 1000 for value in (each if isinstance(each, list) else [each] * 10)]

    def measure(sides: Mapping[str, Side], device: torch.device) -> Mapping[str, list[float]]:
        return {name: seconds[name] for name in sides}

    return measure


def test_the_one_that_is_faster_wins() -> None:
    verdict = hold(rivals(quick=plain), (X,), None, clock(quick=5))
    assert verdict == Verdict(
        "quick",
        "50 % less time than torch",
        0.0,
        LIMIT,
        {TORCH: pytest.approx(10), "quick": pytest.approx(5)},
    )


def test_of_several_that_are_faster_the_fastest_wins() -> None:
    operator = rivals(first=plain, second=plain, third=plain)
    assert hold(operator, (X,), None, clock(first=8, second=4, third=6)).code == "second"


@pytest.mark.parametrize("ms", [10.0, 12.0, 9.8])
def test_one_that_is_not_clearly_faster_does_not_win(ms: float) -> None:
    verdict = hold(rivals(quick=plain), (X,), None, clock(quick=ms))
    assert (verdict.code, verdict.reason, verdict.difference) == (TORCH, "nothing is faster", None)


def test_a_gain_that_two_of_ten_pairs_do_not_show_is_noise() -> None:
    quick = [12.0, 12.0] + [1.0] * 8
    assert hold(rivals(quick=plain), (X,), None, clock(quick=quick)).code == TORCH


def test_a_gain_that_nine_of_ten_pairs_show_is_one() -> None:
    assert hold(rivals(quick=plain), (X,), None, clock(quick=[12.0] + [1.0] * 9)).code == "quick"


def test_one_that_differs_as_rounding_does_may_win() -> None:
    verdict = hold(rivals(quick=off(0.5 * LIMIT)), (X,), None, clock(quick=1))
    assert verdict.code == "quick"
    assert verdict.difference == pytest.approx(0.5 * LIMIT, rel=0.2)


OUT: dict[str, tuple[Run, str]] = {
    "wrong": (off(2e-5), "it differs by 2.0e-05, tolerated are 2.0e-06"),
    "raising": (lambda x: x.view(3), "RuntimeError: shape '[3]' is invalid for input of size 16"),
    "other shape": (lambda x: plain(x)[:1], "its result is torch.float32 (1, 8), should be"),
    "other dtype": (lambda x: plain(x).double(), "its result is torch.float64 (2, 8), should be"),
    "NaN": (lambda x: plain(x) * math.nan, "it is not finite where plain torch is, or the other way round"),
}


@pytest.mark.parametrize("name", OUT)
def test_one_that_does_not_compute_the_same_is_out(name: str) -> None:
    run, reason = OUT[name]
    verdict = hold(rivals(rival=run), (X,), None, clock())
    assert verdict.code == TORCH
    assert f"; rival: {reason}" in verdict.reason


def test_one_that_is_out_does_not_hinder_the_others() -> None:
    verdict = hold(rivals(wrong=off(1.0), quick=plain), (X,), None, clock(quick=5))
    assert (verdict.code, sorted(verdict.ms)) == ("quick", ["quick", TORCH])
    assert verdict.reason.startswith("50 % less time than torch; wrong: it differs by")


def several(*shares: float) -> Operator:
    """Of several results each is off by its share in what is not plain torch."""
    rival = Implementation("quick", lambda x: tuple(off(share)(x) for share in shares))
    return Operator("sum", lambda x: tuple(plain(x) for _ in shares), lambda x: [rival], ((0,),))


def test_several_results_may_differ_as_far_as_one() -> None:
    verdict = hold(several(0.0, 0.5 * LIMIT), (X,), None, clock(quick=5))
    assert verdict.code == "quick"
    assert verdict.difference == pytest.approx(0.5 * LIMIT, rel=0.2)


@pytest.mark.parametrize("shares", [(0.0, 1.0), (1.0, 0.0), (0.0, math.nan), (math.nan, 0.0)])
def test_one_of_several_results_that_is_wrong_is_one_too_many(shares: tuple[float, ...]) -> None:
    assert hold(several(*shares), (X,), None, clock(quick=5)).code == TORCH


def test_of_many_that_are_out_three_are_told() -> None:
    verdict = hold(rivals(**{f"tile {n}": off(1.0) for n in range(5)}), (X,), None, clock())
    assert verdict.reason.count("it differs by") == 3
    assert verdict.reason.endswith("; 2 more")


def test_memory_that_is_missing_says_nothing_of_a_rival() -> None:
    def large(x: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        hold(rivals(large=large), (X,), None, clock())


def test_an_operator_that_nobody_else_computes_has_no_contest() -> None:
    with pytest.raises(LookupError, match="nothing but torch"):
        hold(rivals(), (X,), None, clock())


# The clock


@pytest.mark.parametrize(("ms", "times"), [(10.0, 1), (0.5, 2), (0.3, 4), (0.001, 100)])
def test_what_is_short_is_timed_several_times_in_a_row(ms: float, times: int) -> None:
    runs = []

    def counted(x: Tensor) -> Tensor:
        runs.append(x)
        return plain(x)

    verdict = hold(rivals(quick=counted), (X,), None, clock(torch=ms, quick=ms / 2))
    assert len(runs) == 1 + times  # to be compared, and before it is timed
    assert verdict.ms == {TORCH: pytest.approx(ms / times), "quick": pytest.approx(ms / 2 / times)}


def test_sides_are_timed_as_they_are_where_nothing_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(proof, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    verdict = hold(rivals(quick=plain), (X,), None)
    assert (verdict.code, sorted(verdict.ms)) == (TORCH, ["quick", TORCH])


def test_sides_are_timed_as_recordings_where_calls_are_replayed() -> None:
    recorder, replayed = Recorder(), []

    def measure(sides: Mapping[str, Side], device: torch.device) -> Mapping[str, list[float]]:
        before = recorder.replays
        results = {name: side().clone() for name, side in sides.items()}
        replayed.append(recorder.replays - before)
        assert all(torch.equal(each, plain(X)) for each in results.values())
        return {name: [0.01] * 10 for name in sides}

    hold(rivals(quick=plain), (X,), recorder, measure)
    assert replayed == [0, 2]  # how long plain torch takes, and the contest


def unrecordable(x: Tensor) -> Tensor:
    """As what is launched elsewhere: it cannot be recorded."""
    if RECORDER.is_recording(x.device):
        raise CaptureError("launched elsewhere")
    return plain(x)


def missing(x: Tensor) -> Tensor:
    """As what is launched elsewhere: its recording lacks it."""
    return torch.zeros_like(x) if RECORDER.is_recording(x.device) else plain(x)


RECORDER = Recorder()


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (unrecordable, "quick, replayed: it cannot be recorded"),
        (missing, "quick, replayed: it differs by 1.0e+00"),
    ],
    ids=["refused", "lacking"],
)
def test_what_cannot_be_replayed_right_is_out_where_calls_are_replayed(run: Run, reason: str) -> None:
    verdict = hold(rivals(quick=run), (X,), RECORDER, clock(quick=1))
    assert verdict.code == TORCH
    assert reason in verdict.reason


def test_a_process_that_can_record_nothing_any_more_holds_no_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RECORDER, "fault", lambda: "a capture failed")
    with pytest.raises(UnsoundError, match="a capture failed"):
        hold(rivals(quick=plain), (X,), RECORDER, clock(quick=1))


class Use(NamedTuple):
    out_dtype: torch.dtype


@pytest.mark.parametrize("value", [torch.float16, Use(torch.float16)], ids=["value", "use"])
def test_what_is_rounded_on_the_way_may_differ_by_that(value: Any) -> None:
    others = [Implementation("quick", lambda x, value: plain(x) * 1.001)]
    operator = Operator("sum", lambda x, value: plain(x), lambda x, value: others, ((0,), ()))
    assert hold(operator, (X, value), None, clock(quick=1)).code == "quick"


# Float32, in which TF32 may be allowed


@pytest.fixture
def _tf32() -> Iterator[None]:
    """Products of float32 may be of TF32, as far as torch tells."""
    before = Settings.now()
    allow_tf32_in_products(True)
    yield
    before.take()


def rounded(x: Tensor) -> Tensor:
    """What is less exact while TF32 is allowed."""
    return plain(x) * (1 + (1e-3 if torch.backends.cuda.matmul.allow_tf32 else 0.0))


@pytest.mark.usefixtures("_tf32")
@pytest.mark.parametrize(("share", "code"), [(1.5e-3, "rival"), (4e-3, TORCH)])
def test_a_rival_may_differ_by_what_tf32_does_to_plain_torch(share: float, code: str) -> None:
    operator = rivals(rival=lambda x: rounded(x) * (1 + share))._replace(plain=rounded)
    assert hold(operator, (X,), None, clock(rival=1)).code == code


@pytest.mark.usefixtures("_tf32")
def test_tf32_is_as_it_was_after_a_contest() -> None:
    hold(rivals(quick=plain), (X,), None, clock(quick=1))
    assert torch.backends.cuda.matmul.allow_tf32


def test_half_precision_has_its_own_tolerance() -> None:
    assert hold(rivals(quick=plain), (X.half(),), None, clock(quick=1)).tolerance == tolerance(
        "", torch.float16
    )
