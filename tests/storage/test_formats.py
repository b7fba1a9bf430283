"""Codes and scales: how near they come to the numbers that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.storage.formats import FORMATS, decode, encode

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def matrix(dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of very different sizes."""
    numbers = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-4, 2, 24)[:, None]
    return (torch.randn(24, 40, generator=numbers) * sizes).to(dtype)


def stored(full: Tensor, kind: str) -> Tensor:
    return decode(*encode(full, FORMATS[kind]), full.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_within_half_a_code(dtype: torch.dtype) -> None:
    full = matrix(dtype)
    largest = full.float().abs().amax(1, keepdim=True)
    rounding = torch.finfo(dtype).eps * full.float().abs()
    assert bool(
        ((stored(full, "int8").float() - full.float()).abs() <= largest / 254 * 1.001 + rounding).all()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_float8_is_within_a_sixteenth_of_each_number(dtype: torch.dtype) -> None:
    full = matrix(dtype)
    largest = full.float().abs().amax(1, keepdim=True)
    least = largest / 448 * 2**-10  # half of the smallest code
    limit = full.float().abs() / 16 * (1 + 16 * torch.finfo(dtype).eps) + least
    assert bool(((stored(full, "float8").float() - full.float()).abs() <= limit).all())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_number_takes_one_byte_and_a_row_four_more(kind: str) -> None:
    codes, scale = encode(matrix(), FORMATS[kind])
    assert (codes.nbytes, scale.nbytes) == (24 * 40, 24 * 4)


@pytest.mark.parametrize("kind", FORMATS)
def test_largest_number_of_each_row_is_kept(kind: str) -> None:
    full = matrix()
    assert torch.allclose(stored(full, kind).abs().amax(1), full.abs().amax(1), rtol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_largest_code_is_the_largest_that_there_is(kind: str) -> None:
    codes, _ = encode(matrix(), FORMATS[kind])
    dtype = FORMATS[kind].dtype
    most = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
    assert torch.equal(codes.float().abs().amax(1), torch.full((24,), float(most)))


@pytest.mark.parametrize("kind", FORMATS)
def test_zeros_stay_zeros(kind: str) -> None:
    assert torch.equal(stored(torch.zeros(3, 5), kind), torch.zeros(3, 5))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_number_that_is_none_makes_its_row_nan_and_no_other(kind: str, number: float) -> None:
    full = matrix()
    full[5, 7] = number
    found = stored(full, kind).isnan()
    assert found[5].all()
    assert int(found.sum()) == 40


@pytest.mark.parametrize("kind", FORMATS)
def test_matrix_that_is_encoded_stays_as_it_is(kind: str) -> None:
    full = matrix()
    encode(full, FORMATS[kind])
    assert torch.equal(full, matrix())
