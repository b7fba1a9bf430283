"""What pieces are made of: statistics of a whole image, and bands with what is around them."""

from __future__ import annotations

import weakref
from itertools import product

import pytest
import torch
from torch import Tensor

from lib_accel.blocks import moments as room
from lib_accel.blocks.bands import Convolution, Source, convolve_bands, rows_of
from lib_accel.blocks.convolution import ConvSpec, convolve, output_size
from lib_accel.blocks.moments import moments
from lib_accel.blocks.pieces import by_tokens, doubled, padded
from tests.blocks.pieces import ROWS, drawn, laid

WAYS = {"by subtraction": room._by_subtraction, "at once": room._at_once}


@pytest.fixture(params=WAYS)
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_by_subtraction", WAYS[request.param])


def exact(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    values = x.double().unflatten(1, (groups, -1)).flatten(2)
    return values.mean(-1), values.var(-1, correction=0)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 20])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_moments_of_bands_are_those_of_the_image(dtype: torch.dtype, layout: str, rows: int) -> None:
    x = laid(5 + drawn(2, 12, 7, 5), layout).to(dtype)
    mean, variance = moments(x, 4, rows)
    assert mean.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    for ours, right in zip((mean, variance), exact(x, 4), strict=True):
        assert torch.allclose(ours.double(), right, rtol=2e-6)


@pytest.mark.usefixtures("_either_way")
def test_a_variance_beside_a_large_mean_is_no_difference_of_squares() -> None:
    x = 3000 + drawn(1, 4, 64, 64)
    x[:, :, :8] += 50  # bands differ from each other
    variance = moments(x, 2, 8)[1]
    assert torch.allclose(variance.double(), exact(x, 2)[1], rtol=1e-4)


def test_moments_leave_the_image_as_it_was() -> None:
    x = drawn(1, 4, 6, 5)
    before = x.clone()
    moments(x, 2, 6)
    assert torch.equal(x, before)


SPECS = [
    (kernel, ConvSpec(stride, padding, dilation, 1, circular))
    for kernel, stride, padding, dilation, circular in product(
        ((1, 1), (3, 3), (2, 5)), ((1, 1), (2, 1)), ((0, 0), (1, 2), (2, 1)), ((1, 1), (2, 1)), (False, True)
    )
]


def of_image(x: Tensor) -> Source:
    def write(rows: Tensor, first: int, last: int) -> None:
        assert 0 <= first < last <= x.shape[2]
        rows.copy_(x[:, :, first:last])

    return Source(x, tuple(x.shape[1:]), x.dtype, write)


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize(("kernel", "spec"), SPECS)
def test_bands_are_those_of_the_convolution(kernel: tuple[int, int], spec: ConvSpec, rows: int) -> None:
    x, weight, bias = drawn(2, 4, 9, 7), drawn(6, 4, *kernel), drawn(6)
    right = convolve(x, weight, bias, spec)
    seen: list[Tensor] = []

    def put(part: Tensor, first: int) -> None:
        assert first == sum(each.shape[2] for each in seen)
        seen.append(part)

    band_bytes = rows * 2 * 4 * 7 * 4 * spec.stride[0]
    convolve_bands(of_image(x), Convolution(weight, bias, spec), band_bytes, put)
    assert torch.cat(seen, dim=2).shape[2:] == output_size((9, 7), weight, spec)
    assert torch.allclose(torch.cat(seen, dim=2), right, atol=1e-5)
    assert len(seen) > 1 or rows >= 3


@pytest.mark.parametrize("padding", [1, 2])
def test_a_band_may_be_written_over_the_source_as_it_is_handed_out(padding: int) -> None:
    size = 2 * padding + 1
    x, weight, spec = drawn(1, 4, 9, 7), drawn(4, 4, size, size) / 9, ConvSpec(padding=(padding, padding))
    right = convolve(x, weight, None, spec)

    def put(part: Tensor, first: int) -> None:
        x[:, :, first : first + part.shape[2]] = part

    convolve_bands(of_image(x), Convolution(weight, None, spec), 1, put)
    assert torch.allclose(x, right, atol=1e-5)


def test_only_one_band_is_there_at_a_time() -> None:
    x, weight = drawn(1, 4, 9, 7), drawn(4, 4, 3, 3)
    bands: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def write(rows: Tensor, first: int, last: int) -> None:
        alive.append(sum(band() is not None for band in bands))
        assert rows._base is not None
        bands.append(weakref.ref(rows._base))
        rows.copy_(x[:, :, first:last])

    source = Source(x, (4, 9, 7), x.dtype, write)
    convolve_bands(source, Convolution(weight, None, ConvSpec(padding=(1, 1))), 1, lambda part, first: None)
    assert alive == [0] * 9


@pytest.mark.parametrize(("height", "most", "rows"), [(64, 64, 64), (64, 63, 32), (65, 16, 13), (7, 1, 1)])
def test_bands_are_few_and_about_equal(height: int, most: int, rows: int) -> None:
    assert rows_of(height, most) == rows


@pytest.mark.parametrize(("first", "last"), [(0, 10), (1, 2), (3, 8), (4, 5), (9, 10)])
def test_any_rows_of_a_doubled_image_are_those_of_the_whole(first: int, last: int) -> None:
    x = drawn(1, 2, 5, 3)
    rows = torch.empty(1, 2, last - first, 6)
    doubled(x, x.dtype).write(rows, first, last)
    assert torch.equal(rows, torch.nn.functional.interpolate(x, scale_factor=2.0)[:, :, first:last])


@pytest.mark.parametrize(("first", "last"), [(0, 6), (1, 3), (3, 6), (5, 6)])
def test_any_rows_of_a_padded_image_are_those_of_the_whole(first: int, last: int) -> None:
    x = drawn(1, 2, 5, 3)
    rows = torch.full((1, 2, last - first, 4), torch.nan)
    padded(x, x.dtype).write(rows, first, last)
    assert torch.equal(rows, torch.nn.functional.pad(x, (0, 1, 0, 1))[:, :, first:last])


def test_tokens_of_several_pictures_come_in_their_order() -> None:
    x = drawn(3, 5, 4)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(by_tokens(lambda some: 2 * some, strided, 1, ROWS), 2 * x)
