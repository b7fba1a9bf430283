"""A block runs other code only if that computes the same in less time, on the inputs that it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.rules import Rules
from lib_accel.graphs import proof
from lib_accel.graphs.proof import COMPILED, DIRECT, HOST, WITH_KERNELS, Side, Verdict, prove, tolerance
from tests.graphs.small import Block, calls, difference, drawn, residual, transformer

RIGHT = drawn(2, 16)
KIND = "residual"


def off(share: float, right: Tensor = RIGHT) -> Tensor:
    """An output that is off by this share of its length."""
    error = drawn(*right.shape, seed=7).to(right)
    return right + share * error * right.norm() / error.norm()


class Clock:
    """Seconds that each side takes, one after the other and then the last again and again."""

    def __init__(
        self, seconds: Mapping[str, float] = MappingProxyType({}), **named: float | list[float]
    ) -> None:
        given = {**seconds, **named}
        self._seconds = {code: each if isinstance(each, list) else [each] for code, each in given.items()}
        self._codes: dict[Side, str] = {}
        self.runs = 0

    def name(self, sides: Mapping[str, Side]) -> None:
        """Tells the clock which side is which."""
        self._codes = {side: code for code, side in sides.items()}

    def __call__(self, side: Side, device: torch.device) -> float:
        self.runs += 1
        times = self._seconds[self._codes[side]]
        return times.pop(0) if len(times) > 1 else times[0]


Decide = Callable[..., Verdict]


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Decide:
    """The verdict on outputs by code, whose sides take the given seconds."""

    def prove_outputs(outputs: Mapping[str, Tensor], clock: Clock, *, is_forced: bool = False) -> Verdict:
        sides: dict[str, Side] = {code: (lambda out=out: out) for code, out in outputs.items()}  # type: ignore[misc]
        clock.name(sides)
        monkeypatch.setattr(proof, "_seconds", clock)
        return prove(sides, KIND, is_forced=is_forced)

    return prove_outputs


ALMOST = off(0.9 * tolerance(KIND, torch.float32))
WRONG = off(1.1 * tolerance(KIND, torch.float32))

# The time


def test_compiled_code_that_is_right_and_faster_runs(decide: Decide) -> None:
    verdict = decide({DIRECT: RIGHT, COMPILED: RIGHT}, Clock(direct=2.0, compiled=1.0))
    assert verdict == Verdict(
        COMPILED,
        "50 % less time than direct",
        0.0,
        tolerance(KIND, torch.float32),
        {DIRECT: 2000.0, COMPILED: 1000.0},
    )


def raced(decide: Decide, with_kernels: Tensor, *, is_forced: bool = False, **seconds: float) -> Verdict:
    """The verdict on all four codes, of which only the one with kernels may be wrong."""
    names = {HOST: "host", DIRECT: "direct", COMPILED: "compiled", WITH_KERNELS: "kernels"}
    outputs = {code: with_kernels if code == WITH_KERNELS else RIGHT for code in names}
    clock = Clock({code: seconds.get(name, 2.0) for code, name in names.items()})
    return decide(outputs, clock, is_forced=is_forced)


@pytest.mark.parametrize(
    ("seconds", "code", "reason"),
    [
        ({"compiled": 1.5, "kernels": 1.0}, WITH_KERNELS, "33 % less time than compiled"),
        ({"compiled": 1.0, "kernels": 1.5}, COMPILED, "50 % less time than direct"),
        ({"kernels": 1.0}, WITH_KERNELS, "50 % less time than direct"),
        ({"compiled": 1.5, "kernels": 1.5}, COMPILED, "25 % less time than direct"),
        ({"compiled": 1.5, "kernels": 1.0, "host": 0.5}, HOST, f"50 % less time than {WITH_KERNELS}"),
    ],
    ids=str,
)
def test_the_faster_of_both_compiled_codes_runs(
    decide: Decide, seconds: dict[str, float], code: str, reason: str
) -> None:
    verdict = raced(decide, RIGHT, **seconds)
    assert (verdict.code, verdict.reason) == (code, reason)
    assert set(verdict.ms) == {HOST, DIRECT, COMPILED, WITH_KERNELS}


def test_a_compiled_code_that_is_wrong_does_not_end_the_other(decide: Decide) -> None:
    verdict = raced(decide, off(0.5), compiled=1.0, kernels=0.5)
    assert verdict.code == COMPILED
    assert f"{WITH_KERNELS} differs from direct by 5.0e-01" in verdict.reason
    assert verdict.difference == 0.0


def test_the_difference_is_that_of_the_code_that_was_chosen(decide: Decide) -> None:
    assert raced(decide, ALMOST, compiled=1.0, kernels=0.5).difference == pytest.approx(1.8e-6, rel=0.01)
    assert raced(decide, ALMOST, compiled=0.5, kernels=1.0).difference == 0.0


def test_who_asks_for_compiled_code_gets_that_of_plain_torch(decide: Decide) -> None:
    assert raced(decide, RIGHT, is_forced=True, compiled=3.0, kernels=1.0).code == COMPILED


@pytest.mark.parametrize("seconds", [1.0, 1.5, 0.98])
def test_compiled_code_that_is_not_faster_does_not_run(decide: Decide, seconds: float) -> None:
    verdict = decide({DIRECT: RIGHT, COMPILED: RIGHT}, Clock(direct=1.0, compiled=seconds))
    assert (verdict.code, verdict.reason) == (DIRECT, "nothing is faster")
    assert verdict.ms == {DIRECT: 1000.0, COMPILED: 1000 * seconds}


def test_compiled_code_that_is_asked_for_needs_no_speed(decide: Decide) -> None:
    verdict = decide({DIRECT: RIGHT, COMPILED: RIGHT}, Clock(direct=1.0, compiled=9.0), is_forced=True)
    assert (verdict.code, verdict.reason) == (COMPILED, "asked for")


def test_what_is_asked_for_is_timed_in_one_round_only(decide: Decide) -> None:
    clock = Clock(direct=1.0, compiled=2.0)
    verdict = decide({DIRECT: RIGHT, COMPILED: RIGHT}, clock, is_forced=True)
    assert clock.runs == 2 * 2
    assert verdict.ms == {DIRECT: 1000.0, COMPILED: 2000.0}


@pytest.mark.parametrize("is_right", [True, False])
def test_the_hosts_block_never_runs_where_compiled_code_is_asked_for(decide: Decide, is_right: bool) -> None:
    outputs = {DIRECT: RIGHT, COMPILED: RIGHT if is_right else WRONG, HOST: RIGHT}
    verdict = decide(outputs, Clock(direct=1.0, compiled=1.0, host=0.1), is_forced=True)
    assert verdict.code == (COMPILED if is_right else DIRECT)


def test_the_hosts_block_runs_where_it_is_faster_than_both(decide: Decide) -> None:
    outputs = {DIRECT: RIGHT, COMPILED: RIGHT, HOST: RIGHT}
    verdict = decide(outputs, Clock(direct=4.0, compiled=2.0, host=1.0))
    assert (verdict.code, verdict.reason) == (HOST, "50 % less time than compiled")


def test_compiled_code_runs_where_it_is_faster_than_the_host(decide: Decide) -> None:
    outputs = {DIRECT: RIGHT, COMPILED: RIGHT, HOST: RIGHT}
    assert decide(outputs, Clock(direct=4.0, compiled=1.0, host=2.0)).code == COMPILED


def test_the_hosts_block_runs_where_it_is_faster_and_nothing_was_compiled(decide: Decide) -> None:
    verdict = decide({DIRECT: RIGHT, HOST: RIGHT}, Clock(direct=2.0, host=1.0))
    assert (verdict.code, verdict.difference) == (HOST, None)


def test_direct_code_alone_stays(decide: Decide) -> None:
    verdict = decide({DIRECT: RIGHT}, Clock(direct=1.0))
    assert (verdict.code, verdict.reason) == (DIRECT, "nothing is faster")


@pytest.mark.parametrize(
    ("direct", "compiled"),
    [([9.0, 1.0], 1.0), (1.0, [0.1, 1.0]), ([5.0, 5.0, 1.0], 0.98), ([0.5, 1.0, 3.0, 1.0], 1.0)],
    ids=["slow direct", "fast compiled", "two slow direct", "both ways"],
)
def test_a_run_or_two_out_of_the_line_do_not_decide(decide: Decide, direct: Any, compiled: Any) -> None:
    assert decide({DIRECT: RIGHT, COMPILED: RIGHT}, Clock(direct=direct, compiled=compiled)).code == DIRECT


def test_a_slow_run_of_faster_code_does_not_decide(decide: Decide) -> None:
    clock = Clock(direct=1.0, compiled=[5.0, 0.5])
    assert decide({DIRECT: RIGHT, COMPILED: RIGHT}, clock).code == COMPILED


def test_a_gain_that_two_of_ten_pairs_do_not_show_is_noise(decide: Decide) -> None:
    clock = Clock(direct=1.0, compiled=[5.0, 5.0, 0.5])
    assert decide({DIRECT: RIGHT, COMPILED: RIGHT}, clock).code == DIRECT


def test_sides_run_forth_and_back_as_often_as_each_other(decide: Decide) -> None:
    clock = Clock(direct=1.0, compiled=1.0, host=1.0)
    decide({DIRECT: RIGHT, COMPILED: RIGHT, HOST: RIGHT}, clock)
    assert clock.runs == 3 * 2 * 5


@pytest.fixture
def hours() -> Iterator[int]:
    """Hours that pass from look to look at the clock."""
    return iter(range(0, 3600 * 1000, 3600))


def test_a_proof_of_a_slow_block_is_short(
    decide: Decide, monkeypatch: pytest.MonkeyPatch, hours: Iterator[int]
) -> None:
    monkeypatch.setattr(proof, "time", SimpleNamespace(perf_counter=lambda: next(hours)))
    clock = Clock(direct=1.0, compiled=0.5)
    assert decide({DIRECT: RIGHT, COMPILED: RIGHT}, clock).code == COMPILED
    assert clock.runs == 2 * 2 * 3


def test_seconds_are_those_of_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]

    def side() -> Tensor:
        now[0] += 3.0
        return RIGHT

    monkeypatch.setattr(proof, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert proof._seconds(side, RIGHT.device) == 3.0


# The result


@pytest.mark.parametrize("is_forced", [False, True])
def test_a_wrong_result_never_runs(decide: Decide, is_forced: bool) -> None:
    verdict = decide({DIRECT: RIGHT, COMPILED: WRONG}, Clock(direct=1.0, compiled=0.1), is_forced=is_forced)
    assert verdict.code == DIRECT
    assert verdict.reason == "compiled differs from direct by 2.2e-06, tolerated are 2.0e-06"
    assert COMPILED not in verdict.ms


def test_a_result_within_the_tolerance_runs(decide: Decide) -> None:
    verdict = decide({DIRECT: RIGHT, COMPILED: ALMOST}, Clock(direct=1.0, compiled=0.5))
    assert verdict.code == COMPILED
    assert verdict.difference == pytest.approx(1.8e-6, rel=0.1)


def test_the_hosts_block_may_run_where_compiled_code_is_wrong(decide: Decide) -> None:
    verdict = decide({DIRECT: RIGHT, COMPILED: WRONG, HOST: RIGHT}, Clock(direct=1.0, compiled=0.1, host=0.5))
    assert verdict.code == HOST
    assert "compiled differs from direct" in verdict.reason


def test_code_that_agrees_with_direct_but_not_with_the_host_does_not_run(decide: Decide) -> None:
    step = off(0.9 * tolerance(KIND, torch.float32)) - RIGHT
    outputs = {DIRECT: RIGHT, COMPILED: RIGHT + step, HOST: RIGHT - 0.5 * step}
    assert decide(outputs, Clock(direct=1.0, compiled=0.5, host=2.0)).code == COMPILED
    outputs[HOST] = torch.full_like(RIGHT, math.nan)
    verdict = decide(outputs, Clock(direct=1.0, compiled=0.5, host=2.0))
    assert (verdict.code, "differs from the host's block" in verdict.reason) == (DIRECT, True)


def holes(value: float, *places: int, right: Tensor = RIGHT) -> Tensor:
    """The output with this value at these places."""
    output = right.clone()
    for place in places:
        output.view(-1)[place] = value
    return output


@pytest.mark.parametrize(
    ("direct", "compiled"),
    [
        (RIGHT, holes(math.nan, 3)),
        (RIGHT, holes(math.inf, 3)),
        (holes(math.nan, 3), RIGHT),
        (holes(math.nan, 3), holes(math.nan, 4)),
        (holes(math.nan, 3), holes(math.nan, 3, 4)),
        (RIGHT, RIGHT[:1]),
        (RIGHT, RIGHT.double()),
        (torch.zeros(4), torch.full((4,), 1e-9)),
    ],
    ids=["NaN", "inf", "no NaN", "other NaN", "more NaN", "shape", "dtype", "not zero"],
)
def test_what_cannot_be_compared_is_a_disagreement(decide: Decide, direct: Tensor, compiled: Tensor) -> None:
    verdict = decide({DIRECT: direct, COMPILED: compiled}, Clock(direct=1.0, compiled=0.1), is_forced=True)
    assert (verdict.code, verdict.difference) == (DIRECT, math.inf)


@pytest.mark.parametrize(
    ("direct", "compiled"),
    [
        (holes(math.nan, 3, 5), holes(math.nan, 3, 5)),
        (holes(math.inf, 3), holes(math.inf, 3)),
        (torch.full((4,), math.nan), torch.full((4,), math.nan)),
        (torch.zeros(4), torch.zeros(4)),
    ],
    ids=["NaN", "inf", "nothing but NaN", "zero"],
)
def test_what_is_broken_alike_agrees(decide: Decide, direct: Tensor, compiled: Tensor) -> None:
    verdict = decide({DIRECT: direct, COMPILED: compiled}, Clock(direct=1.0, compiled=0.1))
    assert (verdict.code, verdict.difference) == (COMPILED, 0.0)


def test_numbers_too_large_for_their_dtype_squared_are_compared(decide: Decide) -> None:
    large = (1e4 * RIGHT).half()
    outputs = {DIRECT: large, COMPILED: off(0.05, large.double()).half()}
    verdict = decide(outputs, Clock(direct=1.0, compiled=0.1))
    assert (verdict.code, verdict.difference) == (DIRECT, pytest.approx(0.05, rel=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_too_large_to_be_squared_in_float32_are_no_agreement(
    decide: Decide, dtype: torch.dtype
) -> None:
    large = 1e25 * RIGHT
    outputs = {DIRECT: large.to(dtype), COMPILED: (-large).to(dtype)}
    assert decide(outputs, Clock(direct=1.0, compiled=0.1)).code == DIRECT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    many = torch.full((100_000,), 3.0).to(dtype)  # their squares add up to more than the dtype tells apart
    assert proof.difference(1.5 * many, many) == pytest.approx(0.5, rel=1e-5)


# The tolerances

BLOCKS = {"residual": residual(), "transformer block": transformer()}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def output(block: Block, dtype: torch.dtype, *, halves: bool = False) -> Tensor:
    """The block in a dtype; `halves`: one of the batch after the other, so that sums are in another order."""
    with torch.no_grad():
        inputs, own = calls(block)[0], block.replaced(lambda weight: weight.to(dtype))
        assert inputs.besides is not None
        pairs = zip(inputs.x.split(1), inputs.besides.split(1), strict=True)
        whole = [(inputs.x, inputs.besides)]
        parts = [own.called(x.to(dtype), beside.to(dtype)) for x, beside in (pairs if halves else whole)]
        return torch.cat([own.direct(each) for each in parts])


def exact(block: Block, dtype: torch.dtype) -> Tensor:
    """As a graph joins it: in a wider dtype from the same rounded numbers, and rounded at the end."""
    wide = torch.float64 if dtype is torch.float32 else torch.float32

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).to(wide)

    with torch.no_grad():
        inputs, own = calls(block)[0], block.replaced(rounded)
        assert inputs.besides is not None
        if wide is torch.float64:  # a norm computes in float32 whatever comes
            own = own._replace(spec=_without_upcast(own))
        return own.direct(own.called(rounded(inputs.x), rounded(inputs.besides))).to(dtype)


def _without_upcast(block: Block) -> Any:
    if block.kind != "residual":
        return block.spec
    norms = {name: getattr(block.spec, name)._replace(upcast=False) for name in ("norm_in", "norm_out")}
    return block.spec._replace(**norms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_sums_in_another_order_are_tolerated(kind: str, dtype: torch.dtype) -> None:
    block = BLOCKS[kind]._replace(spec=_without_upcast(BLOCKS[kind]))
    found = difference(output(block, dtype, halves=True), output(block, dtype))
    assert found <= tolerance(kind, dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_fewer_roundings_are_tolerated(kind: str, dtype: torch.dtype) -> None:
    block = BLOCKS[kind]._replace(spec=_without_upcast(BLOCKS[kind]))
    assert 0 < difference(output(block, dtype), exact(block, dtype)) <= tolerance(kind, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_missing_bias_is_not_tolerated(kind: str, dtype: torch.dtype) -> None:
    block = BLOCKS[kind]._replace(spec=_without_upcast(BLOCKS[kind]))
    without = block._replace(weights=(*block.weights[:-1], None))
    found = difference(output(without, dtype), output(block, dtype))
    assert found > 2 * tolerance(kind, dtype)


def test_an_unknown_dtype_is_held_to_float32() -> None:
    assert tolerance("residual", torch.complex64) == tolerance("residual", torch.float32)


def test_rules_decide_the_tolerance_by_the_dtype_that_comes_out(decide: Decide) -> None:
    right = RIGHT.to(Rules(matmul=torch.bfloat16).matmul)
    assert decide({DIRECT: right, COMPILED: right}, Clock(direct=1.0, compiled=0.5)).tolerance == tolerance(
        KIND, torch.bfloat16
    )


def test_opposite_infinities_are_a_disagreement() -> None:
    plus, minus = torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("-inf")])
    assert prove({DIRECT: lambda: plus, COMPILED: lambda: minus}, "residual", is_forced=True).code == DIRECT
