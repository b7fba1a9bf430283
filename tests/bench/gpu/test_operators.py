"""Operators in the suite of GPUs: their sizes, the calls they stand for, contests, and their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lib_accel.bench.gpu import operators_rows as rows
from lib_accel.bench.gpu import projections
from lib_accel.bench.gpu.models import Where, import_packages, model_of
from lib_accel.bench.gpu.operators_calls import call_at
from lib_accel.bench.gpu.operators_rows import OperatorStand, Ring, contest, told, why_out, work_of
from lib_accel.bench.gpu.operators_shapes import LEVELS, NEAR, PROJECTIONS, SHAPES, Shape, toy_of
from lib_accel.bench.gpu.parts import PROJECTIONS_ALONE, PROJECTIONS_ATTENDED, Case
from lib_accel.bench.gpu.sides import SideError
from lib_accel.bench.gpu.timing import DRY
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
    assert all(each.count(False) == 9 for each in formats.values())
    last = {operator: each.count(True) for operator, each in formats.items()}
    assert last.pop("residual block, memory format") == 0
    assert set(last.values()) == {9}


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
    specs = {args[-3]._replace(skip=None) for args in tuner.noted}
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


# Projections


def test_a_packed_weight_gives_query_key_and_value() -> None:
    x, *weights = torch.randn(2, 6, 8), *torch.randn(3, 8, 8)
    for number, weight in enumerate(weights):
        packed = projections._Packed(lambda results, heads, number=number: results[number])  # type: ignore[misc]
        assert torch.allclose(packed(x, *weights, 2), x @ weight.t(), atol=1e-5)


@pytest.mark.parametrize("side", [PROJECTIONS_ALONE, PROJECTIONS_ATTENDED])
def test_a_row_of_projections_has_the_gain_of_a_step_and_what_it_takes(side: str) -> None:
    name = next(name for name, (model, level) in PROJECTIONS.items() if level.layers == 60)
    row = projections.projection_row(OperatorStand(Case(name, "sdxl"), RING), side)
    assert set(row["implementations"]) == {TORCH, projections.PACKED}
    assert row["gain_of_step_ms"] == pytest.approx(60 * (row["stock_ms"] - row["ms"]))
    assert row["copies_mib"] == 60 * 3 * 1280**2 * 4 / 2**20
    assert row["copies_of_model_mib"] == row["copies_mib"] + 10 * 3 * 640**2 * 4 / 2**20


def test_a_packed_weight_that_is_out_leaves_its_row_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections, "contest", lambda *_: Verdict(TORCH, "odd", ms={TORCH: 1.0}))
    name = next(iter(PROJECTIONS))
    with pytest.raises(SideError, match="odd"):
        projections.projection_row(OperatorStand(Case(name, "sd15"), RING), PROJECTIONS_ALONE)


def test_packed_copies_are_of_all_self_attentions_of_the_model() -> None:
    import_packages()
    unet: nn.Module = model_of("sd15", Where(torch.device("meta"), torch.float16, False))
    blocks: list[Any] = [each for each in unet.modules() if type(each).__name__ == "BasicTransformerBlock"]
    weights = [getattr(block.attn1, name).weight for block in blocks for name in ("to_q", "to_k", "to_v")]
    assert projections.copies_bytes(LEVELS["sd15"], torch.float16) == sum(each.nbytes for each in weights)
