"""The group norm kernels equal the exact result, in every way and class of shapes that the tables have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_accel.kernels import configs, group_norm
from lib_accel.kernels.group_norm import TOLERANCES, Norm, candidates, launch, why_not
from lib_accel.kernels.tolerance import Tolerance
from tests.kernels.place import DTYPES, LAYOUTS, MARKS, assert_near, random

pytestmark = MARKS

# Groups that one program walks over, of one tile and of several.
WHOLE = {
    "one pixel": (1, 6, 1, 1, 2),
    "ten channels a group": (2, 320, 7, 13, 32),
    "one channel a group": (1, 5, 3, 2, 5),
    "one group": (2, 7, 5, 9, 1),
    "several tiles": (1, 12, 37, 41, 2),
    "multiples of a float32 reciprocal that fall short": (1, 82, 1, 41, 2),
}

# Larger groups, one case for each class of pixels.
SPLIT = {
    "few pixels": (2, 900, 6, 7, 2),
    "some pixels": (1, 150, 11, 12, 1),
    "many pixels": (1, 40, 21, 22, 1),
    "a large image": (1, 5, 60, 61, 1),
}

# More pixels than one chunk has: small ones, as the tables' own want an image that takes seconds.
CHUNKED, SMALL_CHUNK = (1, 2, 40, 41), configs.Chunk(channels=2, pixels=64, per_chunk=256, warps=4)
CHUNK_TABLES = (configs.CHUNKS_CHANNELS_FIRST, configs.CHUNKS_CHANNELS_LAST)

# Which function launches which kind of tile.
FORMS = {("_launch_whole", configs.Line), ("_launch_split", configs.Chunk)}


def exact(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, shift: Tensor | None = None
) -> Tensor:
    """In float64, rounded nowhere."""
    weight, bias = (None if t is None else t.double() for t in (weight, bias))
    source = x.double() if shift is None else x.double() + shift.double()[:, :, None, None]
    result = F.group_norm(source, norm.groups, weight, bias, norm.eps)
    return F.silu(result) if norm.silu else result


def image(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    return (2 * random(*shape, dtype=dtype) + 3).contiguous(memory_format=LAYOUTS[layout])


def is_split(shape: tuple[int, ...], groups: int) -> bool:
    return shape[1] // groups * shape[2] * shape[3] > configs.WHOLE_UP_TO


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", WHOLE | SPLIT)
def test_kernel_equals_group_norm_and_silu(case: str, layout: str, dtype: torch.dtype) -> None:
    *shape, groups = (WHOLE | SPLIT)[case]
    x = image(tuple(shape), dtype, layout)
    weight, bias = random(shape[1]), random(shape[1], dtype=torch.float16, seed=1)
    norm = Norm(groups, 1e-5, dtype, silu=True)
    assert is_split(tuple(shape), groups) == (case in SPLIT)
    assert why_not(x, weight, bias, norm) == ()
    ours = launch(x, weight, bias, norm)
    assert ours.dtype is dtype
    assert ours.stride() == x.stride()
    assert_near(ours, exact(x, weight, bias, norm), TOLERANCES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_equals_group_norm_over_several_chunks(layout: str) -> None:
    x, norm = image(CHUNKED, torch.float16, layout), Norm(2, 1e-5, torch.float16)
    assert_near(launch(x, None, None, norm, tile=SMALL_CHUNK), exact(x, None, None, norm), TOLERANCES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["one pixel", "several tiles", "some pixels"])
def test_kernel_adds_a_shift_of_each_channel_first(case: str, layout: str) -> None:
    *shape, groups = (WHOLE | SPLIT)[case]
    x, shift = image(tuple(shape), torch.float32, layout), 3 * random(*shape[:2])
    weight, norm = random(shape[1]), Norm(groups, 1e-5, torch.float32, silu=True)
    assert why_not(x, weight, None, norm, shift) == ()
    assert_near(launch(x, weight, None, norm, shift), exact(x, weight, None, norm, shift), TOLERANCES)


@pytest.mark.parametrize("case", ["several tiles", "some pixels"])
def test_a_shift_is_not_rounded_to_the_images_dtype(case: str) -> None:
    *shape, groups = (WHOLE | SPLIT)[case]
    x, norm = image(tuple(shape), torch.float16, "channels first"), Norm(groups, 1e-5, torch.float32)
    shift = 1000 * random(*shape[:2])
    ours = launch(x, None, None, norm, shift)
    assert_near(ours, exact(x, None, None, norm, shift), TOLERANCES | {torch.float32: Tolerance(1e-6, 1e-4)})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_tile_of_each_table_equals_group_norm(layout: str) -> None:
    x, shift = image((2, 6, 13, 17), torch.float16, layout), random(2, 6, dtype=torch.float16)
    args = x, None, None, Norm(2, 1e-5, torch.float16), shift
    tables = (configs.WHOLE_GROUPS, CHUNK_TABLES[layout == "channels last"])
    for tile in {tile for table in tables for tiles in table.values() for tile in tiles}:
        assert_near(launch(*args, tile=tile), exact(*args), TOLERANCES)


def test_near_the_border_either_form_is_a_candidate_and_the_tables_own_is_first() -> None:
    below, above = (torch.empty(1, 1, elements // 64, 64) for elements in (16384, 16384 + 64))
    norm = Norm(1, 1e-5, torch.float16)
    tiles = [candidates(x, None, None, norm) for x in (below, above)]
    kinds = [[type(each) for each in some] for some in tiles]
    assert [each[0] for each in kinds] == [configs.Line, configs.Chunk]
    assert [{*each} for each in kinds] == [{configs.Line, configs.Chunk}] * 2
    assert all(len({*map(repr, each)}) == len(each) <= 5 for each in tiles)


def test_a_tile_that_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("_launch_whole", "_launch_split"):
        monkeypatch.setattr(group_norm, name, lambda *args, name=name: taken.append((name, args[-1])))
    x, norm = image((1, 12, 37, 41), torch.float32, "channels first"), Norm(2, 1e-5, torch.float32)
    tiles = candidates(x, None, None, norm)
    for tile in (None, *tiles):
        launch(x, None, None, norm, tile=tile)
    assert [each for _, each in taken] == [tiles[0], *tiles]
    assert {(name, type(each)) for name, each in taken} == FORMS


@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 4),
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    across=st.integers(2, 9),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    silu=st.booleans(),
    affine=st.booleans(),
    has_shift=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_kernel_equals_group_norm_for_any_shape(
    batch: int,
    groups: int,
    width: int,
    height: int,
    across: int,
    layout: str,
    dtype: torch.dtype,
    silu: bool,
    affine: bool,
    has_shift: bool,
) -> None:
    x = image((batch, groups * width, height, across), dtype, layout)
    weight = random(groups * width, dtype=dtype) if affine else None
    norm = Norm(groups, 1e-6, dtype, silu)
    shift = random(batch, groups * width, dtype=dtype, seed=2) if has_shift else None
    ours = launch(x, weight, None, norm, shift)
    assert_near(ours, exact(x, weight, None, norm, shift), TOLERANCES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["several tiles", "some pixels"])
def test_a_mean_far_from_zero_costs_few_digits(case: str, layout: str) -> None:
    *shape, groups = (WHOLE | SPLIT)[case]
    x = image(tuple(shape), torch.float32, layout) + 1000
    norm = Norm(groups, 1e-5, torch.float32)
    # One float32 step at 1000 is 6e-5, and the spread is 2; sums of squares would be wrong by percents.
    assert (launch(x, None, None, norm).double() - exact(x, None, None, norm)).abs().max() < 2e-4


@pytest.mark.parametrize("case", ["several tiles", "some pixels"])
def test_silu_is_computed_from_the_rounded_norm(case: str) -> None:
    *shape, groups = (WHOLE | SPLIT)[case]
    x = image(tuple(shape), torch.float32, "channels last")
    early = launch(x, None, None, Norm(groups, 1e-5, torch.float16, silu=True, out_dtype=torch.float32))
    late = launch(x, None, None, Norm(groups, 1e-5, torch.float32, silu=True, out_dtype=torch.float32))
    assert torch.equal(early, early.half().float())
    assert not torch.equal(late, late.half().float())
    # The norm's rounding before SiLU is seen behind it.
    assert not torch.equal(early, late.half().float())


@pytest.mark.parametrize("case", ["several tiles", "some pixels"])
def test_result_is_cast_in_the_end(case: str) -> None:
    *shape, groups = (WHOLE | SPLIT)[case]
    x = image(tuple(shape), torch.float32, "channels first")
    wide = launch(x, None, None, Norm(groups, 1e-5, torch.float32, silu=True))
    ours = launch(x, None, None, Norm(groups, 1e-5, torch.float32, silu=True, out_dtype=torch.float16))
    assert torch.equal(ours, wide.half())


def test_two_launches_give_the_same_bits() -> None:
    x = image((1, 150, 11, 12), torch.float16, "channels last")
    norm = Norm(1, 1e-5, torch.float16, silu=True)
    assert torch.equal(launch(x, None, None, norm), launch(x, None, None, norm))


def test_constant_group_is_its_bias() -> None:
    x, bias = torch.full_like(random(1, 4, 3, 3), 7.0), random(4)
    ours = launch(x, None, bias, Norm(2, 1e-5, torch.float32))
    assert torch.equal(ours, bias[None, :, None, None].expand_as(x))


def test_nan_stays_in_its_group() -> None:
    x = image((1, 4, 3, 3), torch.float32, "channels first")
    x[0, 0, 0, 0] = torch.nan
    ours = launch(x, None, None, Norm(2, 1e-5, torch.float32))
    assert ours[:, :2].isnan().all()
    assert ours[:, 2:].isfinite().all()


def test_kernel_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(group_norm, "launch", lambda *args: launched.append(args) or launch(*args))
    x, norm = image((2, 6, 5, 7), torch.float32, "channels first"), Norm(3, 1e-5, torch.float32)
    assert_near(group_norm.group_norm(x, None, None, norm), exact(x, None, None, norm), TOLERANCES)
    assert len(launched) == 1
    strided = x.transpose(2, 3)
    ours = group_norm.group_norm(strided, None, None, norm, x[:, :, 0, 0])
    assert_near(ours, exact(strided, None, None, norm, x[:, :, 0, 0]), TOLERANCES)
    assert len(launched) == 1
