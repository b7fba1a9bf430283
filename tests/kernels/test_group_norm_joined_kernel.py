"""The group norm of two images equals that of their union to the last bit, and joins them if asked to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_accel.kernels import configs, group_norm
from lib_accel.kernels.group_norm import Norm
from lib_accel.kernels.group_norm_joined import candidates, launch, why_not
from tests.kernels.place import DTYPES, LAYOUTS, MARKS, random

pytestmark = MARKS

# Channels left and right, height, width, groups. Groups lie across the seam; the last is split.
CASES = {
    "one pixel": (3, 2, 1, 1, 1),
    "seam in a group": (5, 7, 5, 9, 3),
    "one channel at the right": (11, 1, 7, 3, 4),
    "split": (90, 61, 11, 12, 1),
}


def images(case: str, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, Norm]:
    left, right, height, width, groups = CASES[case]
    norm = Norm(groups, 1e-5, dtype, silu=True)
    both = (random(2, channels, height, width, dtype=dtype, seed=channels) for channels in (left, right))
    first, second = (each.contiguous(memory_format=LAYOUTS[layout]) for each in both)
    first[0, 0, 0, 0] = second[0, 0, 0, 0] = -0.0
    return first, second, norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_that_of_the_joined_image(case: str, layout: str, dtype: torch.dtype) -> None:
    left, right, norm = images(case, dtype, layout)
    joined = torch.cat([left, right], dim=1).contiguous(memory_format=LAYOUTS[layout])
    weight, bias = random(joined.shape[1]), random(joined.shape[1], seed=1)
    assert why_not(left, right, weight, bias, norm) == ()
    ours, kept = launch(left, right, weight, bias, norm, keep=True)
    assert kept is not None
    assert kept.stride() == joined.stride() == ours.stride()
    assert torch.equal(kept, joined)
    assert torch.equal(kept.signbit(), joined.signbit())
    assert torch.equal(ours, group_norm.launch(joined, weight, bias, norm))


@pytest.mark.parametrize("case", ["seam in a group", "split"])
def test_joined_image_is_left_out_unless_asked_for(case: str) -> None:
    left, right, norm = images(case, torch.float16, "channels first")
    ours, kept = launch(left, right, None, None, norm, keep=False)
    assert kept is None
    assert torch.equal(ours, launch(left, right, None, None, norm, keep=True)[0])


@pytest.mark.parametrize("tile", [configs.Line(512, 2), configs.Chunk(4, 16, 16, 4)], ids=str)
def test_a_tile_that_is_asked_for_is_taken(tile: configs.Line | configs.Chunk) -> None:
    left, right, norm = images("seam in a group", torch.float16, "channels last")
    joined = torch.cat([left, right], dim=1)
    ours, _ = launch(left, right, None, None, norm, keep=False, tile=tile)
    assert torch.equal(ours, group_norm.launch(joined, None, None, norm, tile=tile))


@pytest.mark.parametrize("case", CASES)
def test_candidates_are_those_of_the_joined_image(case: str) -> None:
    left, right, norm = images(case, torch.float16, "channels last")
    joined = torch.cat([left, right], dim=1)
    assert candidates(left, right, None, None, norm) == group_norm.candidates(joined, None, None, norm)
