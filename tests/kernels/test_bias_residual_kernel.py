"""The kernel that adds bias and residual equals the exact sum, in every layout that it takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_accel.kernels import bias_residual
from lib_accel.kernels.bias_residual import TOLERANCES, candidates, launch, why_not
from tests.kernels.place import DTYPES, LAYOUTS, MARKS, assert_near, random

pytestmark = MARKS

IMAGES = {
    "one pixel": (2, 70, 1, 1),
    "one channel": (3, 1, 5, 9),
    "few pixels": (2, 37, 7, 8),
    "some pixels": (1, 5, 11, 20),
    "many pixels": (2, 3, 33, 41),
}
TOKENS = {
    "a row": (77,),
    "rows": (5, 320),
    "batches of rows": (2, 9, 1280),
    "parts of batches": (1, 2, 2, 3, 7),
}


def exact(x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    total = x.double() + residual.double()
    if bias is None:
        return total
    return total + (bias.double()[:, None, None] if x.dim() == 4 else bias.double())


def laid(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int = 0) -> Tensor:
    return random(*shape, dtype=dtype, seed=seed).contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", IMAGES)
def test_kernel_equals_the_sum_for_images(case: str, layout: str, dtype: torch.dtype) -> None:
    shape = IMAGES[case]
    x, residual = laid(shape, dtype, layout), laid(shape, dtype, layout, seed=1)
    bias = random(shape[1], dtype=dtype, seed=2)
    assert why_not(x, bias, residual) == ()
    ours = launch(x, bias, residual)
    assert ours.dtype is dtype
    assert ours.stride() == x.stride()
    assert_near(ours, exact(x, bias, residual), TOLERANCES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TOKENS)
def test_kernel_equals_the_sum_for_tokens(case: str, dtype: torch.dtype) -> None:
    x, residual = random(*TOKENS[case], dtype=dtype), random(*TOKENS[case], dtype=dtype, seed=1)
    bias = random(TOKENS[case][-1], seed=2)
    assert why_not(x, bias, residual) == ()
    assert_near(launch(x, bias, residual), exact(x, bias, residual), TOLERANCES)


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    height=st.integers(1, 9),
    width=st.integers(1, 40),
    layout=st.sampled_from(list(LAYOUTS)),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    has_bias=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_kernel_equals_the_sum_for_any_shape_and_dtypes(
    batch: int,
    channels: int,
    height: int,
    width: int,
    layout: str,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    has_bias: bool,
) -> None:
    shape = (batch, channels, height, width)
    x, residual = laid(shape, dtypes[0], layout), laid(shape, dtypes[1], layout, seed=1)
    bias = random(channels, dtype=dtypes[2], seed=2) if has_bias else None
    ours = launch(x, bias, residual)
    assert ours.dtype is torch.promote_types(x.dtype, residual.dtype)
    assert_near(ours, exact(x, bias, residual), TOLERANCES)


@pytest.mark.parametrize("shape", [*IMAGES.values(), *TOKENS.values()], ids=str)
def test_each_candidate_gives_the_same_bits(shape: tuple[int, ...]) -> None:
    x, residual = random(*shape, dtype=torch.float16), random(*shape, dtype=torch.float16, seed=1)
    bias = random(shape[1 if len(shape) == 4 else -1])
    tiles = candidates(x, bias, residual)
    assert len(set(map(repr, tiles))) == len(tiles) > 1
    first, *others = (launch(x, bias, residual, tile=tile) for tile in tiles)
    assert_near(first, exact(x, bias, residual), TOLERANCES)
    assert all(torch.equal(each, first) for each in others)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sum_is_rounded_once(layout: str) -> None:
    x, residual = (torch.full((1, 2, 3, 5), each, dtype=torch.float16) for each in (2048.0, -2048.0))
    x, residual = (
        each.to(random(1).device).contiguous(memory_format=LAYOUTS[layout]) for each in (x, residual)
    )
    bias = torch.tensor([0.25, 0.75], dtype=torch.float16, device=x.device)  # 2048.25 is 2048 in float16
    assert torch.equal(launch(x, bias, residual), bias[None, :, None, None].expand_as(x))


def test_kernel_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(bias_residual, "launch", lambda *args: launched.append(args) or launch(*args))
    x = random(6, 10)
    for each, count in ((x, 1), (x.t(), 1)):
        bias = random(each.shape[-1], seed=1)
        assert_near(bias_residual.bias_residual(each, bias, each), exact(each, bias, each), TOLERANCES)
        assert len(launched) == count
