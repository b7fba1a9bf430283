"""Query, key and value by one product are what they are by three, and attention takes them as they lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.attention.case import case_of
from lib_accel.blocks import transformer
from lib_accel.blocks.operators import attention, projections
from lib_accel.blocks.operators.operator import Arguments
from lib_accel.blocks.operators.projections import KEY, PROJECTIONS, at_once, calls, key_of
from lib_accel.blocks.rules import AS_IT_COMES
from lib_accel.graphs.proof import difference, tolerance
from lib_accel.tuning.signature import call_of, example
from tests.fakes.attentions import Products

CHANNELS, SOURCE, HEADS = 64, 24, 2


def given(
    *, crosses: bool, dtype: torch.dtype | None = None, batch: int = 2, is_packed: bool = False
) -> Arguments:
    """Arguments of the question; `dtype`: what they are cast to."""
    context = torch.randn(batch, 7, SOURCE) if crosses else None
    width = SOURCE if crosses else CHANNELS
    weights = [torch.randn(CHANNELS, each) / 8 for each in (CHANNELS, width, width)]
    if is_packed:
        weights[crosses:] = torch.split(torch.cat(weights[crosses:]), CHANNELS)
    return (torch.randn(batch, 16, CHANNELS), context, *weights, HEADS, dtype)


def three(args: Arguments) -> Any:
    *tensors, _, dtype = args
    return at_once(*tensors, dtype=dtype)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("crosses", [False, True])
def test_one_product_gives_what_three_give(crosses: bool, batch: int, dtype: torch.dtype | None) -> None:
    args = given(crosses=crosses, batch=batch, dtype=dtype, is_packed=True)
    x, context, *weights = [each if each is None else each.to(dtype or each.dtype) for each in args[:5]]
    sources = (x, *2 * [x if context is None else context])
    for own, source, weight in zip(three(args), sources, weights, strict=True):
        assert difference(own, F.linear(source, weight)) <= tolerance("", own.dtype)


@pytest.mark.parametrize("crosses", [False, True])
def test_weights_that_lie_apart_are_nobodys_to_join(crosses: bool) -> None:
    assert three(given(crosses=crosses)) is None


def test_weights_of_other_sizes_have_results_of_theirs() -> None:
    weights = torch.split(torch.randn(40, CHANNELS), [16, 16, 8])
    results = at_once(torch.randn(2, 5, CHANNELS), None, *weights, dtype=None)
    assert results is not None
    assert [each.shape[-1] for each in results] == [16, 16, 8]


# Attention


def test_attention_takes_the_results_as_they_lie() -> None:
    query, key, value = three(given(crosses=False, is_packed=True))
    assert not query.is_contiguous()
    with Products() as spy:
        mixed = attention.plain(query, key, value, HEADS, None)
    assert spy.copies == []
    assert mixed.is_contiguous()


def test_kernels_for_attention_see_heads_that_begin_where_they_can_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lib_accel.attention.case.capability", lambda device: (8, 0))
    for crosses in (False, True):
        assert case_of(*three(given(crosses=crosses, is_packed=True)), HEADS, None).is_aligned


def test_heads_that_are_filled_up_are_the_same() -> None:
    query, key, value = three(given(crosses=False, is_packed=True))
    apart = [each.contiguous() for each in (query, key, value)]
    of = [tensor.view(2, 16, HEADS, 32).narrow(-1, 0, 32) for tensor in (query, *apart)]
    assert torch.equal(F.pad(of[0], (0, 8)), F.pad(of[1], (0, 8)))


# The block


def block(crosses: bool, *, is_packed: bool, bias: bool = False) -> tuple[Any, ...]:
    x, context, query, key, value, heads, _ = given(crosses=crosses, is_packed=is_packed)
    one = torch.ones(CHANNELS)
    of_query = one if bias else None
    weights = (one, one, query, of_query, key, None, value, None, torch.randn(CHANNELS, CHANNELS), one)
    return x, context, transformer.AttentionWeights(*weights), transformer.AttentionSpec(1e-5, heads)


def products(*args: Any) -> int:
    with Products() as spy:
        transformer.attend(*args, AS_IT_COMES)
    return len(spy.widths)


@pytest.mark.parametrize(("crosses", "count"), [(False, 2), (True, 3)])
def test_packed_weights_take_one_product(crosses: bool, count: int) -> None:
    assert products(*block(crosses, is_packed=True)) == count
    assert products(*block(crosses, is_packed=False)) == 4


def test_with_a_bias_there_is_a_product_each() -> None:
    assert products(*block(False, is_packed=True, bias=True)) == 4


def test_a_compiler_traces_a_product_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "is_compiling", lambda: True)
    monkeypatch.setattr(transformer, "at_once", None)
    assert products(*block(False, is_packed=True)) == 4


# The question


@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_packed_copies_give_what_plain_torch_gives(crosses: bool, dtype: torch.dtype | None) -> None:
    args = given(crosses=crosses, dtype=dtype)
    right = PROJECTIONS.plain(*args)
    result = projections.packed()(*args)
    assert (result.shape, result.dtype, result.stride()) == (right.shape, right.dtype, right.stride())
    assert difference(result, right) <= tolerance(PROJECTIONS.name, right.dtype)


def test_copies_are_made_once() -> None:
    args, run = given(crosses=False), projections.packed()
    with Products() as spy:
        for _ in range(3):
            run(*args)
    assert spy.copies == [f"cat ({3 * CHANNELS}, {CHANNELS})"]


@pytest.mark.parametrize("crosses", [False, True])
def test_in_plain_torch_it_is_what_the_part_computes(crosses: bool) -> None:
    x, context, *weights, heads, _ = args = given(crosses=crosses)
    source = x if context is None else context
    of = [F.linear(each, weight) for each, weight in zip((x, source, source), weights, strict=True)]
    assert torch.equal(PROJECTIONS.plain(*args), attention.plain(*of, heads, None))


@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_the_part_calls_when_packed_is_told(crosses: bool, dtype: torch.dtype | None) -> None:
    args = given(crosses=crosses, dtype=dtype, is_packed=True)
    ((operator, inner),) = calls(*args)
    assert operator is attention.ATTENTION
    assert call_of(operator, inner) == call_of(operator, (*three(args), HEADS, dtype))


def test_on_a_cpu_nobody_asks() -> None:
    assert PROJECTIONS.others(*given(crosses=False)) == ()


class _OnGpu(Tensor):
    is_cuda = True  # type: ignore[assignment]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_on_a_gpu_packed_weights_are_the_rival(dtype: torch.dtype) -> None:
    x, *others = given(crosses=False)
    others[1:4] = [each.to(dtype) for each in others[1:4]]
    found = PROJECTIONS.others(x.as_subclass(_OnGpu), *others)
    assert [each.name for each in found] == ["packed"] * (dtype is not torch.float64)


def test_an_example_of_a_call_is_one() -> None:
    args = given(crosses=True)
    call = call_of(PROJECTIONS, args)
    assert call_of(PROJECTIONS, example(call)) == call
    assert args[KEY].shape == (CHANNELS, SOURCE)


def test_calls_that_differ_in_what_they_read_are_told_apart() -> None:
    one = given(crosses=True)
    longer = (one[0], torch.randn(2, 9, SOURCE), *one[2:])
    keys = [key_of(args) for args in (one, longer, given(crosses=False), given(crosses=True, batch=1))]
    assert len(set(keys)) == 4
    assert key_of(one) == key_of(given(crosses=True))
