"""Operators in the suite of GPUs: their sizes, the calls they stand for, contests, and their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lib_accel.bench.gpu import operators_rows as rows
from lib_accel.bench.gpu.models import Where, import_packages, model_of
from lib_accel.bench.gpu.operators_calls import call_at
from lib_accel.bench.gpu.operators_rows import OperatorStand, Ring, contest, told, why_out, work_of
from lib_accel.bench.gpu.operators_shapes import NEAR, SHAPES, Shape, toy_of
from lib_accel.bench.gpu.parts import Case
from lib_accel.bench.gpu.timing import DRY
from lib_accel.blocks import joined
from lib_accel.blocks.operators import layout
from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.blocks.operators.table import OPERATORS
from lib_accel.blocks.res import ResWeights, res_block
from lib_accel.blocks.rules import Rules
from lib_accel.blocks.transformer import (
    AttentionSpec,
    AttentionWeights,
    FeedForwardSpec,
    FeedForwardWeights,
    attend,
    feed_forward,
)
from lib_accel.engine import Engine
from lib_accel.graphs.proof import Verdict
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.signature import call_of, example, size_class
from tests.fakes.host import FakeHost
from tests.fakes.tuning import FakeTuner
from tests.tuning.rooms import SCALED, operator

CPU = torch.device("cpu")
TOY = Where(CPU, torch.float32, False, True)
GPU = Where(torch.device("cuda", 0), torch.float16, True)
RING = Ring(TOY, DRY)
FIRST = {shape.operator: shape for shape in reversed(SHAPES.values())}


def toy_call(operator: str) -> Any:
    return call_at(toy_of(FIRST[operator]), TOY)


# Sizes


def test_every_operator_of_the_table_is_measured_at_tuned_sizes_and_at_others() -> None:
    assert {shape.operator for shape in SHAPES.values()} == set(OPERATORS)
    assert {near.tuned.operator for near in NEAR.values()} == set(OPERATORS)


def test_images_are_measured_in_both_formats_but_where_the_format_is_the_question() -> None:
    formats: dict[str, list[bool]] = {}
    for shape in SHAPES.values():
        if len(shape.sizes) == 4:
            formats.setdefault(shape.operator, []).append(shape.is_last)
    counts = {operator: (each.count(False), each.count(True)) for operator, each in formats.items()}
    assert counts.pop("residual block, memory format") == (9, 0)
    assert counts.pop("join, group norm") == (6, 6)  # a VAE has no skips
    assert set(counts.values()) == {(9, 9)}


@pytest.mark.parametrize("name", NEAR)
def test_sizes_that_take_one_winner_are_of_its_class_and_differ(name: str) -> None:
    near = NEAR[name]
    calls = [call_at(shape, GPU) for shape in (near.tuned, *near.others)]
    classes = {size_class(OPERATORS[call.operator], call) for call in calls}
    assert (len(classes), len(set(calls))) == (1, 3)


# Calls


@pytest.mark.parametrize("name", SHAPES)
def test_every_call_has_the_arguments_of_its_operator_in_half_precision(name: str) -> None:
    call = call_at(SHAPES[name], GPU)
    assert len(call.args) == len(OPERATORS[call.operator].varies)
    assert {(form.dtype, form.device) for form in call.forms} == {(torch.float16, "cuda:0")}


def test_norms_compute_in_float32_and_give_what_products_take() -> None:
    use = call_at(FIRST["layer norm"], GPU).args[-1]
    assert (use.dtype, use.out_dtype) == (torch.float32, torch.float16)
    use = call_at(FIRST["convolution, norm"], GPU).args[-2]
    assert (use.dtype, use.out_dtype, use.silu) == (torch.float32, torch.float16, True)
    assert call_at(FIRST["residual block, memory format"], GPU).args[-2:] == (torch.float16, torch.float32)


class Listening:
    """operator.Tuned that notes calls, and leaves them to plain torch."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        self.calls[f"{operator.name} {len(self.calls)}"] = call_of(operator, args)
        return None

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        raise error


def _heard(run: Callable[[Rules], object]) -> list[Any]:
    listening = Listening()
    run(Rules(matmul=torch.float32, norm=torch.float32, tuned=listening))
    return list(listening.calls.values())


def test_calls_of_images_are_those_that_a_residual_block_makes() -> None:
    x, emb, *others = example(toy_call("residual block, memory format"))
    weights, spec = ResWeights(*others[:-3]), others[-3]
    heard = _heard(lambda rules: res_block(x, emb, weights, spec, rules))
    assert heard == [toy_call(name) for name in ("group norm", "convolution, norm", "convolution, residual")]


def test_a_call_of_two_images_is_that_which_a_residual_block_of_two_makes() -> None:
    left, right, *norm, use = example(toy_call("join, group norm"))
    heard = _heard(lambda rules: joined.norm_silu((left, right), tuple(norm), use.norm, rules))  # type: ignore[arg-type]
    assert heard == [toy_call("join, group norm")]


def test_the_work_of_an_operator_with_two_results_counts_both() -> None:
    _, moved = work_of(OPERATORS["join, group norm"], example(toy_call("join, group norm")))
    assert moved == 4 * (2 * 64 * 24 + 2 * 128 + 2 * 128 * 24)


def test_the_residual_block_itself_is_asked_as_its_operator_takes_it() -> None:
    call = toy_call("residual block, memory format")
    x, emb, *others = example(call)
    rules = Rules(matmul=torch.float32, norm=torch.float32)
    args = layout.arguments(x, emb, others[:-3], others[-3], rules)
    assert call_of(layout.RESIDUAL_LAYOUT, args) == call


def test_calls_of_tokens_are_those_that_a_transformer_block_makes() -> None:
    x, one, square = torch.ones(1, 6, 64), torch.ones(64), torch.ones(64, 64)
    weights = AttentionWeights(one, one, square, None, square, None, square, None, square, one)
    heard = _heard(lambda rules: attend(x, None, weights, AttentionSpec(1e-5, 2), rules))
    names = ["layer norm", "attention", "linear, residual"]
    narrow = toy_of(FIRST["linear, residual"]._replace(inner=64))
    assert heard == [*map(toy_call, names[:2]), call_at(narrow, TOY)]
    wide = FeedForwardWeights(
        one, one, torch.ones(512, 64), torch.ones(512), torch.ones(64, 256), torch.ones(64)
    )
    heard = _heard(lambda rules: feed_forward(x, wide, FeedForwardSpec(1e-5), rules))
    assert heard == [*map(toy_call, ("layer norm", "gated linear", "linear, residual"))]


@pytest.mark.parametrize("model", ["sd15", "vae"])
def test_specs_are_those_of_the_models_own_blocks(model: str) -> None:
    import_packages()
    tuner, subject = FakeTuner(), model_of(model, TOY)
    engine = Engine(FakeHost(), tuner=tuner)  # type: ignore[arg-type]
    engine.attach()
    given = (torch.ones(1, 4, 8, 8),) if model == "vae" else _unet_inputs()
    try:
        with torch.no_grad():
            subject(*given)
    finally:
        engine.detach()
    noted = [args for name, args in tuner.noted if name == layout.RESIDUAL_LAYOUT.name]
    specs = {args[-3]._replace(skip=None) for args in noted}
    shape = Shape("residual block, memory format", model, (1, 64, 4, 6))
    assert specs == {call_at(shape, TOY).args[-3]}


def _unet_inputs() -> tuple[torch.Tensor, ...]:
    return torch.ones(1, 4, 8, 8), torch.ones(1), torch.ones(1, 5, 32)


# Contests


@pytest.fixture(scope="module")
def scaled() -> tuple[Arguments, Verdict]:
    """A contest of rivals of every sort."""
    args = (torch.ones(2, 3, 4, 5), 2.0)
    return args, contest(SCALED, args, RING)


def test_a_row_says_who_wins_and_by_how_much(scaled: tuple[Arguments, Verdict]) -> None:
    row = told(scaled[1])
    assert (row["winner"], set(row["implementations"])) == ("quick", {TORCH, "quick"})
    assert row["stock_ms"] / row["ms"] == row["ratio"] > 1


def test_each_implementation_that_is_out_has_its_reason(scaled: tuple[Arguments, Verdict]) -> None:
    out = why_out(SCALED, *scaled)
    assert set(out) == {"wrong", "raising"}
    assert "tolerated are" in out["wrong"]
    assert out["raising"].startswith("ValueError: no kernel")


def test_where_nothing_else_takes_the_arguments_plain_torch_has_its_time() -> None:
    verdict = contest(operator("alone"), (torch.ones(2), 2.0), RING)
    assert (verdict.code, list(verdict.ms)) == (TORCH, [TORCH])
    assert "nothing but torch takes its arguments here" in verdict.reason
    assert verdict.ms[TORCH] > 0


def test_the_work_of_an_operator_is_its_flop_and_what_goes_in_and_out() -> None:
    call = toy_call("gated linear")
    flop, moved = work_of(OPERATORS["gated linear"], example(call))
    assert flop == 2 * 6 * 64 * 512
    assert moved == 4 * (6 * 64 + 512 * 64 + 512 + 6 * 256)


def test_a_row_of_an_operator_is_held_against_its_own_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "contest", lambda *_: Verdict("b", "", ms={TORCH: 4.0, "b": 2.0}))
    monkeypatch.setattr(rows, "work_of", lambda *_: (790e9, 1))
    row = rows.operator_row(OperatorStand(Case(next(iter(SHAPES)), ""), RING), "contest")
    assert row["floor_ms"] == pytest.approx(1.0)
    assert (row["floor_share"], row["plain_floor_share"]) == (pytest.approx(0.5), pytest.approx(0.25))


@pytest.mark.parametrize(
    ("ms", "own", "share"),
    [
        ({TORCH: 4.0, "a": 2.0, "b": 1.9}, "b", 0.95),
        ({TORCH: 4.0, "a": 2.0, "b": 3.0}, "a", 1.0),
        ({TORCH: 4.0, "b": 2.0}, "b", None),
    ],
)
def test_a_size_that_nobody_tuned_is_held_against_its_own_winner(
    ms: dict[str, float], own: str, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([Verdict("a", "", ms={TORCH: 4.0, "a": 1.0}), *[Verdict(own, "", ms=ms)] * 2])
    monkeypatch.setattr(rows, "contest", lambda *_: next(found))
    row = rows.near_row(OperatorStand(Case(next(iter(NEAR)), ""), RING), "near")
    assert (row["share"], [each["taken"] for each in row["others"]]) == (share, ["a", "a"])
    assert [each["share"] for each in row["others"]] == [share, share]
    assert row["is_enough"] == (share is not None)


def test_less_than_95_percent_of_the_tuned_speed_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([Verdict("a", "", ms={TORCH: 4.0, "a": 1.0})])
    other = Verdict("b", "", ms={TORCH: 4.0, "a": 2.0, "b": 1.89})
    monkeypatch.setattr(rows, "contest", lambda *_: next(found, other))
    row = rows.near_row(OperatorStand(Case(next(iter(NEAR)), ""), RING), "near")
    assert (row["share"], row["is_enough"]) == (pytest.approx(0.945), False)
