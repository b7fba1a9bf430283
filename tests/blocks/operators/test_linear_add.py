"""A linear layer that ends a residual branch, by a product that is added to what is there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators.linear_add import LINEAR_ADD, onto_residual
from lib_accel.blocks.operators.operator import Arguments
from lib_accel.graphs.proof import difference, tolerance


def given(
    dtype: torch.dtype = torch.float32, *, bias: bool = True, shape: tuple[int, ...] = (2, 5)
) -> Arguments:
    """Arguments of the operator, as a block in one dtype has them."""
    x, weight, residual = torch.randn(*shape, 24), torch.randn(16, 24) / 5, torch.randn(*shape, 16)
    of = [each.to(dtype) for each in (x, weight, torch.randn(16), residual)]
    return (of[0], of[1], of[2] if bias else None, of[3], None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (7,), (1, 1), (2, 0)])
def test_the_sum_is_that_of_plain_torch(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    args = given(dtype, bias=bias, shape=shape)
    right, result = LINEAR_ADD.plain(*args), onto_residual(*args)
    assert (result.dtype, result.shape, result.stride()) == (right.dtype, right.shape, right.stride())
    assert difference(result, right) <= tolerance(LINEAR_ADD.name, dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_the_residual_is_left_as_it_is(bias: bool) -> None:
    args = given(bias=bias)
    before = args[3].clone()
    onto_residual(*args)
    assert torch.equal(args[3], before)


def test_operands_are_cast_as_autocast_does() -> None:
    x, weight, bias, residual, _ = given()
    args = (x, weight, bias, residual.bfloat16(), torch.bfloat16)
    assert difference(onto_residual(*args), LINEAR_ADD.plain(*args)) <= tolerance("", torch.bfloat16)


def test_tokens_that_lie_apart_are_taken() -> None:
    x, *others = given()
    strided = torch.randn(2, 24, 5).transpose(1, 2)
    assert difference(onto_residual(strided, *others), LINEAR_ADD.plain(strided, *others)) <= 1e-6
    assert x.shape == strided.shape


class _OnGpu(Tensor):
    is_cuda = True  # type: ignore[assignment]


def names(args: Arguments) -> list[str]:
    x, weight, bias, residual, dtype = args
    return [each.name for each in LINEAR_ADD.others(x, weight, bias, residual.as_subclass(_OnGpu), dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_on_a_gpu_it_is_a_rival(dtype: torch.dtype, bias: bool) -> None:
    assert names(given(dtype, bias=bias)) == ["cuBLAS"]


def another_dtype(args: Arguments) -> Arguments:
    return (*args[:3], args[3].double(), args[4])


def cast_to_another(args: Arguments) -> Arguments:
    return (*args[:4], torch.float16)


def larger(args: Arguments) -> Arguments:
    return (*args[:3], args[3].expand(3, *args[3].shape), args[4])


def strided(args: Arguments) -> Arguments:
    return (*args[:3], args[3].transpose(0, 1).contiguous().transpose(0, 1), args[4])


def doubles(args: Arguments) -> Arguments:
    return (*(each.double() for each in args[:4]), None)


@pytest.mark.parametrize("change", [another_dtype, cast_to_another, larger, strided, doubles])
def test_where_the_sum_would_have_another_form_it_is_none(change) -> None:  # type: ignore[no-untyped-def]
    assert names(change(given())) == []


def test_on_a_cpu_there_is_none() -> None:
    assert not LINEAR_ADD.others(*given())
