"""How far ours is from stock, in numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib_accel.bench.comparison import picture_difference, relative_l2, to_bytes


def test_equal_tensors_are_no_distance_apart() -> None:
    assert relative_l2(torch.ones(3), torch.ones(3)) == 0.0


def test_the_distance_is_measured_against_stock() -> None:
    assert relative_l2(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)


def test_a_difference_from_nothing_is_endless() -> None:
    assert relative_l2(torch.ones(2), torch.zeros(2)) == float("inf")


def test_a_difference_below_float32_is_seen() -> None:
    stock = torch.full((1000,), 1000.0)
    ours = stock.clone()
    ours[0] = torch.nextafter(ours[0], torch.tensor(2000.0))
    assert 0 < relative_l2(ours, stock) < 1e-8


def test_tensors_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ours \(2, 1\), stock \(2, 3\)"):
        relative_l2(torch.ones(2, 1), torch.ones(2, 3))


def test_nan_is_not_taken_for_equal() -> None:
    assert not relative_l2(torch.tensor([float("nan")]), torch.tensor([1.0])) <= 1.0


def test_a_decoders_range_becomes_that_of_bytes_and_what_lies_outside_is_cut() -> None:
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    assert to_bytes(levels)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_channels_come_last_in_bytes() -> None:
    assert to_bytes(torch.zeros(2, 3, 8, 16)).shape == (2, 8, 16, 3)


def test_the_largest_and_the_mean_difference_of_pictures_do_not_wrap_round() -> None:
    ours, stock = np.zeros((2, 2), np.uint8), np.array([[200, 0], [0, 0]], np.uint8)
    assert picture_difference(ours, stock) == (200, 50.0)
