"""The group norm of two images equals that of their union to the last bit, and joins them if asked to."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.joined_norm import JOINED_NORM
from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.blocks.rules import AS_IT_COMES, Rules
from lib_accel.engine import Engine
from lib_accel.graphs.proof import difference, tolerance
from lib_accel.kernels import configs, group_norm
from lib_accel.kernels.group_norm import Norm
from lib_accel.kernels.group_norm_joined import candidates, launch, why_not
from tests.fakes.host import FakeHost
from tests.fakes.models import Inputs, inputs, run, tiny_sgm_unet, tiny_unet
from tests.fakes.tuning import FakeTuner
from tests.kernels.place import DEVICE, DTYPES, IS_INTERPRETED, LAYOUTS, MARKS, random

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


# As an operator of blocks

_RULES = {"autocast": Rules(torch.float16, torch.float32), "as it comes": AS_IT_COMES}


def _called(layout: str, rules: Rules, case: str = "seam in a group") -> Arguments:
    left, right, norm = images(case, torch.float16, layout)
    channels = left.shape[1] + right.shape[1]
    affine = [random(channels, dtype=torch.float16, seed=seed) for seed in (0, 1)]
    spec = GroupNormSpec(norm.groups, norm.eps, upcast=rules.norm is not None)
    return (left, right, *affine, GroupNormUse(spec, True, rules.norm, rules.matmul))


@pytest.mark.parametrize("rules", _RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_implementation_gives_the_norm_and_the_image(layout: str, rules: str) -> None:
    args = _called(layout, _RULES[rules])
    right = JOINED_NORM.plain(*args)
    for other in JOINED_NORM.others(*args):
        normed, kept = other.run(*args)
        assert (normed.dtype, normed.stride()) == (right[0].dtype, right[0].stride())
        assert difference(normed, right[0]) <= tolerance(JOINED_NORM.name, normed.dtype), other.name
        assert torch.equal(kept, right[1])


def test_each_tile_is_offered_with_and_without_torchs_joining() -> None:
    args = _called("channels first", AS_IT_COMES)
    norm = images("seam in a group", torch.float16, "channels first")[2]
    tiles = [repr(tile) for tile in candidates(*args[:4], norm)]
    names = [other.name for other in JOINED_NORM.others(*args)]
    assert names == [f"{way}{tile}" for way in ("Triton, ", "torch.cat, Triton, ") for tile in tiles]


def test_images_of_two_formats_are_torchs() -> None:
    left, right, *others = _called("channels first", AS_IT_COMES)
    assert JOINED_NORM.others(left, right.contiguous(memory_format=torch.channels_last), *others) == ()


class _Joining:
    """operator.Tuned that takes our kernel for two images, and counts."""

    count = 0

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        others = operator.others(*args) if operator is JOINED_NORM else ()
        return others[0]._replace(run=partial(self._run, others[0])) if others else None

    def _run(self, chosen: Implementation, *args: Any) -> Any:
        self.count += 1
        return chosen.run(*args)

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        raise error


@pytest.mark.parametrize("family", ["ldm", "sgm"])
def test_a_unet_gives_the_same_where_the_kernel_joins(family: str) -> None:
    make, vector = (tiny_unet, False) if family == "ldm" else (tiny_sgm_unet, True)
    drawn = inputs(1, size=(6, 4), vector=vector)
    unet, given = make().to(DEVICE), Inputs(*(t if t is None else t.to(DEVICE) for t in drawn))
    stock, joining = run(unet, given), _Joining()
    engine = Engine(FakeHost(), tuner=FakeTuner(joining))  # type: ignore[arg-type]
    engine.attach()
    ours = run(unet, given)
    engine.detach()
    assert joining.count == len(unet.output_blocks)  # type: ignore[arg-type]
    assert engine.generation.host == 0
    assert difference(ours, stock) <= (1e-5 if IS_INTERPRETED else 1e-3)  # a GPU convolves in TF32
