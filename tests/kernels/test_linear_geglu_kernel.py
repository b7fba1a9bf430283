"""The product with the gate inside equals the exact result, rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_accel.kernels import configs, linear_geglu
from lib_accel.kernels.linear_geglu import TOLERANCES, candidates, launch, why_not
from lib_accel.kernels.tolerance import rounded
from tests.kernels.place import IS_INTERPRETED, MARKS, assert_near, random

pytestmark = MARKS

# The interpreter multiplies the bit patterns of bfloat16 matrices, so only a GPU can test those.
DTYPES = (torch.float16,) if IS_INTERPRETED else (torch.float16, torch.bfloat16)

# The kernel rounds less often than what TOLERANCES are for.
ONCE = rounded(times=1, arithmetic=2e-5)

# Rows, channels, and channels of the result: less than a tile, not of whole tiles, several bands of tiles.
CASES = {
    "one row": (1, 16, 16),
    "less than a tile": (40, 48, 32),
    "not of whole tiles": (150, 80, 208),
    "several bands": (1300, 32, 144),
}

Arguments = tuple[Tensor, Tensor, Tensor]


def arguments(rows: int, channels: int, inner: int, dtype: torch.dtype) -> Arguments:
    """Such that values and gates are of about unit size."""
    weight = random(2 * inner, channels) * channels**-0.5
    return random(rows, channels, dtype=dtype), weight.to(dtype), random(2 * inner, seed=1)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    value, gate = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).chunk(2, -1)
    return value * F.gelu(gate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_value_times_gelu_of_gate(case: str, dtype: torch.dtype) -> None:
    args = arguments(*CASES[case], dtype)
    assert why_not(*args) == ()
    ours = launch(*args)
    assert ours.dtype is dtype
    assert_near(ours, exact(*args), ONCE)


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 60),
    channels=st.integers(1, 9).map(lambda each: 16 * each),
    inner=st.integers(1, 9).map(lambda each: 16 * each),
    dtype=st.sampled_from(DTYPES),
    has_bias=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_kernel_equals_the_exact_result_for_any_shape(
    batch: int, tokens: int, channels: int, inner: int, dtype: torch.dtype, has_bias: bool
) -> None:
    x, weight, bias = arguments(batch * tokens, channels, inner, dtype)
    args = x.view(batch, tokens, channels), weight, bias if has_bias else None
    ours = launch(*args)
    assert ours.shape == (batch, tokens, inner)
    assert_near(ours, exact(*args), ONCE)


@pytest.mark.parametrize("table", [configs.LINEAR_GEGLU, configs.LINEAR_GEGLU_LARGE], ids=["small", "large"])
def test_each_tile_of_each_table_equals_the_exact_result(table: dict[int, tuple[configs.Gated, ...]]) -> None:
    args = arguments(150, 80, 208, torch.float16)
    for tile in {tile for tiles in table.values() for tile in tiles}:
        # A GPU with less shared memory than the large tiles take is no place to try them.
        if IS_INTERPRETED or tile in candidates(*args):
            assert_near(launch(*args, tile=tile), exact(*args), ONCE)


def test_candidates_are_those_of_the_rows() -> None:
    few, many = (candidates(*arguments(rows, 16, 16, torch.float16)) for rows in (256, 257))
    assert {*few} != {*many}
    assert all(2 <= len({*map(repr, each)}) == len(each) <= 5 for each in (few, many))


def test_kernel_is_nearer_than_the_reference() -> None:
    x, weight, bias = arguments(64, 64, 64, torch.float16)
    args = x, weight, bias.half()
    ours, torchs = launch(*args), linear_geglu.reference(*args)
    assert_near(torchs, exact(*args), TOLERANCES)
    assert (ours - exact(*args)).square().mean() < 0.5 * (torchs - exact(*args)).square().mean()


def test_kernel_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(linear_geglu, "launch", lambda *args: launched.append(args) or launch(*args))
    x, weight, bias = arguments(32, 16, 16, torch.float16)
    for each, count in ((x, 1), (x.t().contiguous().t(), 1)):
        ours = linear_geglu.linear_geglu(each, weight, bias)
        assert_near(ours, exact(each, weight, bias), TOLERANCES)
        assert len(launched) == count
