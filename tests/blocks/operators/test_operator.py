"""An operator is computed by what was chosen, and an image comes out whatever that does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators import layout, operator
from lib_accel.blocks.operators.casts import add
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.operators.operator import Implementation, Operator, by_tile, run
from lib_accel.blocks.operators.prefer import Prefer
from lib_accel.blocks.operators.table import OPERATORS
from lib_accel.blocks.res import ResSpec, ResWeights, res_block
from lib_accel.blocks.rules import AS_IT_COMES, Rules
from tests.fakes.tuning import Taking

SQUARE = Operator("square", torch.square, lambda x: [Implementation("abs", torch.abs)], ((0,),))
X = torch.full((2,), -3.0)


def fail(x: Tensor) -> Tensor:
    raise RuntimeError("no such kernel")


def test_without_a_choice_it_is_plain_torch() -> None:
    assert run(SQUARE, None, X).tolist() == run(SQUARE, Taking(), X).tolist() == [9, 9]


def test_what_was_chosen_computes_it() -> None:
    assert run(SQUARE, Taking("square", torch.abs), X).tolist() == [3, 3]


def test_a_failure_is_noted_and_plain_torch_follows() -> None:
    taking = Taking("square", fail)
    assert run(SQUARE, taking, X).tolist() == [9, 9]
    assert taking.failures == ["square: no such kernel"]


def test_a_failure_in_a_capture_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "is_capturing", lambda device: True)
    taking = Taking("square", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        run(SQUARE, taking, X)
    assert taking.failures == []


def test_lack_of_memory_comes_out() -> None:
    def grow(x: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(SQUARE, Taking("square", grow), X)


def test_a_compiler_traces_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "is_compiling", lambda: True)
    assert run(SQUARE, Taking("square", torch.abs), X).tolist() == [9, 9]


def test_prefer_takes_what_bears_the_name_and_else_plain_torch() -> None:
    assert run(SQUARE, Prefer("ab"), X).tolist() == [3, 3]
    assert run(SQUARE, Prefer("none"), X).tolist() == [9, 9]


def test_a_kernel_has_an_implementation_for_each_tile() -> None:
    found = by_tile("Triton", lambda x, tile: x + tile, (1, 2))
    assert [(each.name, each.run(X).tolist()) for each in found] == [
        ("Triton, 1", [-2, -2]),
        ("Triton, 2", [-1, -1]),
    ]


@pytest.mark.parametrize(
    ("own", "other", "is_own"), [("float32", "float32", True), ("float16", "float32", False)]
)
def test_a_sum_is_written_into_its_own_memory_if_that_has_its_dtype(
    own: str, other: str, is_own: bool
) -> None:
    mine, theirs = torch.ones(2, dtype=getattr(torch, own)), torch.ones(2, dtype=getattr(torch, other))
    total = add(mine, theirs)
    assert (total is mine, total.dtype, theirs.tolist()) == (is_own, torch.float32, [1, 1])


def test_every_operator_has_its_own_name() -> None:
    assert all(each.name == name for name, each in OPERATORS.items())
    assert len(OPERATORS) == 10


# The memory format of residual blocks

_SPEC = ResSpec(
    GroupNormSpec(2, 1e-5, True),
    ConvSpec(padding=(1, 1)),
    GroupNormSpec(2, 1e-5, True),
    ConvSpec(padding=(1, 1)),
    None,
)


def residual() -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """x, embedding and the weights of a block without a skip, as a unit has them."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(16,), (16,), (16, 16, 3, 3), (16,), (16, 6), (16,), (16,), (16,), (16, 16, 3, 3), (16,)]
    x, emb, *weights = (torch.randn(shape, generator=draw) for shape in [(2, 16, 5, 3), (2, 6), *shapes])
    return x, emb, tuple(weights)


def test_the_question_has_the_arguments_of_a_block_without_a_skip_too() -> None:
    x, emb, weights = residual()
    args = layout.arguments(x, emb, weights, _SPEC, Rules(torch.float16, torch.float32))
    assert len(args) == len(layout.RESIDUAL_LAYOUT.varies)
    assert args[-3:] == (_SPEC, torch.float16, torch.float32)


def test_in_plain_torch_it_is_the_block() -> None:
    x, emb, weights = residual()
    args = layout.arguments(x, emb, weights, _SPEC, AS_IT_COMES)
    ours = res_block(x, emb, ResWeights(*weights), _SPEC, AS_IT_COMES)
    assert torch.equal(layout.RESIDUAL_LAYOUT.plain(*args), ours)


def test_on_a_cpu_nobody_asks() -> None:
    x, emb, weights = residual()
    assert layout.RESIDUAL_LAYOUT.others(*layout.arguments(x, emb, weights, _SPEC, AS_IT_COMES)) == ()


def test_what_the_block_calls_channels_last_is_told() -> None:
    x, emb, weights = residual()
    calls = layout.calls(*layout.arguments(x, emb, weights, _SPEC, AS_IT_COMES))
    assert [each.name for each, _ in calls] == ["group norm", "convolution, norm", "convolution, residual"]
    images = [args[0] for _, args in calls]
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in images)
