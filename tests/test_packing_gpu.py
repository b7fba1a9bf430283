"""Packed projections and sums onto a residual on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.blocks import transformer
from lib_accel.blocks.operators.attention import ATTENTION
from lib_accel.blocks.operators.linear_add import LINEAR_ADD
from lib_accel.blocks.operators.operator import Arguments, Operator
from lib_accel.blocks.operators.projections import PROJECTIONS, at_once
from lib_accel.blocks.rules import AS_IT_COMES
from lib_accel.graphs.cuda_graph import CudaLauncher
from lib_accel.graphs.proof import difference, tolerance
from lib_accel.tuning.contest import TORCH, hold
from tests.fakes.attentions import Attentions, packed

pytestmark = pytest.mark.gpu

CHANNELS, SOURCE, HEADS, TOKENS = 320, 768, 8, 1024
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def draw(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    source = torch.Generator("cuda").manual_seed(sum(shape))
    return torch.randn(shape, generator=source, device="cuda").mul_(0.1).to(dtype)


def question(crosses: bool, dtype: torch.dtype = torch.float16) -> Arguments:
    context = draw(2, 77, SOURCE, dtype=dtype) if crosses else None
    width = SOURCE if crosses else CHANNELS
    weights = [draw(CHANNELS, each, dtype=dtype) for each in (CHANNELS, width, width)]
    return (draw(2, TOKENS, CHANNELS, dtype=dtype), context, *weights, HEADS, None)


def end(dtype: torch.dtype = torch.float16) -> Arguments:
    x, weight = draw(2, TOKENS, 4 * CHANNELS, dtype=dtype), draw(CHANNELS, 4 * CHANNELS, dtype=dtype)
    return x, weight, draw(CHANNELS, dtype=dtype), draw(2, TOKENS, CHANNELS, dtype=dtype), None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("crosses", [False, True])
@torch.no_grad()
def test_packed_copies_give_what_plain_torch_gives(crosses: bool, dtype: torch.dtype) -> None:
    args = question(crosses, dtype)
    (rival,) = PROJECTIONS.others(*args)
    right = PROJECTIONS.plain(*args)
    assert difference(rival.run(*args), right) <= tolerance(PROJECTIONS.name, dtype)


@torch.no_grad()
def test_every_kernel_for_attention_takes_packed_results_as_they_lie() -> None:
    x, _, *weights, _, _ = question(False)
    parts = torch.split(torch.cat(weights), CHANNELS)
    three = at_once(x, None, *parts, dtype=None)
    assert three is not None
    args = (*three, HEADS, None)
    right = ATTENTION.plain(*args)
    others = ATTENTION.others(*args)
    assert others
    for each in others:
        assert difference(each.run(*args), right) <= tolerance(ATTENTION.name, right.dtype), each.name


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_sum_onto_the_residual_is_that_of_plain_torch(dtype: torch.dtype) -> None:
    args = end(dtype)
    (rival,) = [each for each in LINEAR_ADD.others(*args) if each.name == "cuBLAS"]
    residual = args[3].clone()
    assert difference(rival.run(*args), LINEAR_ADD.plain(*args)) <= tolerance(LINEAR_ADD.name, dtype)
    assert torch.equal(args[3], residual)


@pytest.mark.parametrize(
    ("operator", "args", "rival"),
    [(PROJECTIONS, lambda: question(False), "packed"), (LINEAR_ADD, end, "cuBLAS")],
    ids=["packed", "cuBLAS"],
)
@torch.no_grad()
def test_a_contest_times_them_as_they_are_recorded(operator: Operator, args, rival: str) -> None:  # type: ignore[no-untyped-def]
    verdict = hold(operator, args(), CudaLauncher())
    assert {TORCH, rival} <= set(verdict.ms), verdict.reason


@torch.no_grad()
def test_a_model_on_the_gpu_is_packed_and_put_back() -> None:
    model = Attentions(torch.float16).cuda()
    before = [weight.clone() for weight in model.parameters()]
    each = packed(model)
    query, key, value = model.own.weights
    assert at_once(draw(1, 4, 16), None, query, key, value, dtype=None) is not None
    assert each.put_back() == 5
    assert all(map(torch.equal, model.parameters(), before))


@torch.no_grad()
def test_a_block_that_was_moved_to_the_gpu_runs_plainly() -> None:
    model = Attentions(torch.float16)
    packed(model)
    model.cuda()
    one, square = torch.ones(16, device="cuda").half(), draw(16, 16)
    query, key, value = model.own.weights
    weights = transformer.AttentionWeights(one, one, query, None, key, None, value, None, square, one)
    x = draw(2, 8, 16)
    result = transformer.attend(x, None, weights, transformer.AttentionSpec(1e-5, 2), AS_IT_COMES)
    assert result.shape == x.shape
    assert at_once(x, None, query, key, value, dtype=None) is None
