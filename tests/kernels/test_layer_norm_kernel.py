"""The layer norm kernel equals the exact result for every class of widths."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_accel.kernels import configs, layer_norm
from lib_accel.kernels.layer_norm import TOLERANCES, candidates, launch, why_not
from tests.kernels.place import DTYPES, MARKS, assert_near, random

pytestmark = MARKS

WIDTHS = (1, 77, 320, 640, 768, 1280, 2048, 2051, max(configs.WHOLE_ROWS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_kernel_equals_layer_norm(width: int, dtype: torch.dtype) -> None:
    x = 2 * random(3, 5, width, dtype=dtype) + 3
    weight, bias = random(width), random(width, dtype=torch.float16, seed=1)
    assert why_not(x, weight, bias, dtype) == ()
    exact = F.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5)
    assert_near(launch(x, weight, bias, 1e-5, dtype), exact, TOLERANCES)


@pytest.mark.parametrize("width", [320, 1280, 5000])
def test_each_candidate_equals_layer_norm(width: int) -> None:
    x, weight = random(3, width, dtype=torch.float16), random(width)
    tiles = candidates(x, weight, None, torch.float16)
    assert len(set(map(repr, tiles))) == len(tiles) > 1
    exact = F.layer_norm(x.double(), (width,), weight.double(), None, 1e-5)
    for tile in tiles:
        assert_near(launch(x, weight, None, 1e-5, torch.float16, tile=tile), exact, TOLERANCES)


@given(
    rows=st.integers(1, 20),
    width=st.integers(1, 300),
    source=st.sampled_from(DTYPES),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=20, deadline=None)
def test_kernel_equals_layer_norm_for_any_shape_and_result(
    rows: int, width: int, source: torch.dtype, dtype: torch.dtype
) -> None:
    x = random(rows, width, dtype=source)
    ours = launch(x, None, None, 1e-5, dtype)
    assert ours.dtype is dtype
    assert_near(ours, F.layer_norm(x.double(), (width,), None, None, 1e-5), TOLERANCES)


def test_a_mean_far_from_zero_costs_few_digits() -> None:
    x = random(4, 640) + 1000
    exact = F.layer_norm(x.double(), (640,), None, None, 1e-5)
    assert (launch(x, None, None, 1e-5, torch.float32).double() - exact).abs().max() < 2e-4


def test_kernel_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(layer_norm, "launch", lambda *args: launched.append(args) or launch(*args))
    x = random(6, 10)
    for each, count in ((x, 1), (x.t(), 1)):
        ours = layer_norm.layer_norm(each, None, None, 1e-5, torch.float32)
        assert_near(ours, F.layer_norm(each.double(), each.shape[-1:], None, None, 1e-5), TOLERANCES)
        assert len(launched) == count
