"""A residual block of two images is the block of both joined, whatever joins them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks import joined
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators import group_norm
from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.joined_norm import JOINED_NORM
from lib_accel.blocks.operators.operator import Arguments, Implementation
from lib_accel.blocks.res import ResSpec, ResWeights, res_block
from lib_accel.blocks.rules import AS_IT_COMES, Rules
from lib_accel.graphs.proof import Side
from lib_accel.tuning.contest import TORCH, hold
from tests.fakes.tuning import Taking

LEFT, RIGHT, OUT = 12, 20, 16
AROUND = ConvSpec(padding=(1, 1))
FORMATS = {"first": torch.contiguous_format, "last": torch.channels_last}
HALF = torch.bfloat16

# Without autocast, under a GPU's and under a CPU's; and the dtype of images.
RULES = {
    "single": (AS_IT_COMES, torch.float32),
    "half": (AS_IT_COMES, HALF),
    "GPU": (Rules(HALF, torch.float32), HALF),
    "CPU": (Rules(HALF), torch.float32),
}


def images(
    size: tuple[int, int] = (5, 7), form: str = "first", dtype: torch.dtype = torch.float32
) -> joined.Images:
    left, right = (torch.randn(2, channels, *size, dtype=dtype) for channels in (LEFT, RIGHT))
    return left.contiguous(memory_format=FORMATS[form]), right.contiguous(memory_format=FORMATS[form])


def block(dtype: torch.dtype, *, has_skip: bool = True) -> tuple[Tensor, ResWeights, ResSpec]:
    """Embedding, weights and spec."""
    wide, out = LEFT + RIGHT, OUT if has_skip else LEFT + RIGHT
    shapes = [(wide,), (wide,), (out, wide, 3, 3), (out,), (out, 6), (out,), (out,), (out,), (out, out, 3, 3)]
    skip = [(out, wide, 1, 1), (out,)] if has_skip else []
    weights = [torch.randn(shape, dtype=dtype) / 4 for shape in (*shapes, (out,), *skip)]
    norm = GroupNormSpec(4, 1e-5, upcast=False)
    spec = ResSpec(norm, AROUND, norm, AROUND, ConvSpec() if has_skip else None)
    return torch.randn(2, 6, dtype=dtype), ResWeights(*weights), spec


def use(rules: Rules = AS_IT_COMES) -> GroupNormUse:
    return GroupNormUse(GroupNormSpec(4, 1e-5, upcast=False), True, rules.norm, rules.matmul)


def arguments(pair: joined.Images | None = None) -> Arguments:
    return (*(pair or images()), torch.randn(LEFT + RIGHT), torch.randn(LEFT + RIGHT), use())


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (1, 1)])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", RULES)
def test_a_block_of_two_images_has_the_bits_of_the_block_of_both(
    name: str, form: str, size: tuple[int, int]
) -> None:
    rules, dtype = RULES[name]
    pair, (emb, weights, spec) = images(size, form, dtype), block(dtype)
    right = res_block(torch.cat(pair, dim=1), emb, weights, spec, rules)
    ours = res_block(pair, emb, weights, spec, rules)
    assert (ours.dtype, ours.stride()) == (right.dtype, right.stride())
    assert torch.equal(ours, right)


def test_without_a_convolution_the_joined_image_is_the_residual() -> None:
    pair, (emb, weights, spec) = images(), block(torch.float32, has_skip=False)
    right = res_block(torch.cat(pair, dim=1), emb, weights, spec, AS_IT_COMES)
    assert torch.equal(res_block(pair, emb, weights, spec, AS_IT_COMES), right)


def test_plain_torch_gives_the_norm_and_the_image() -> None:
    left, right, *others = arguments()
    whole = torch.cat([left, right], dim=1)
    normed, kept = JOINED_NORM.plain(left, right, *others)
    assert torch.equal(normed, group_norm.plain(whole, *others))
    assert torch.equal(kept, whole)


def test_on_a_cpu_there_is_nothing_else() -> None:
    assert JOINED_NORM.others(*arguments()) == ()


def _halved(*args: Any) -> tuple[Tensor, Tensor]:
    normed, kept = JOINED_NORM.plain(*args)
    return normed / 2, kept


def test_what_was_chosen_joins() -> None:
    pair, (emb, weights, spec) = images(), block(torch.float32)
    chosen = AS_IT_COMES._replace(tuned=Taking(JOINED_NORM.name, _halved))
    plain = res_block(pair, emb, weights, spec, AS_IT_COMES)
    assert not torch.allclose(res_block(pair, emb, weights, spec, chosen), plain)


def test_what_fails_is_noted_and_plain_torch_joins() -> None:
    pair, (emb, weights, spec) = images(), block(torch.float32)
    taking = Taking(JOINED_NORM.name, lambda *args: 1 / 0)  # type: ignore[arg-type, return-value]
    ours = res_block(pair, emb, weights, spec, AS_IT_COMES._replace(tuned=taking))
    assert torch.equal(ours, res_block(pair, emb, weights, spec, AS_IT_COMES))
    assert taking.failures == ["join, group norm: division by zero"]


@pytest.mark.parametrize(
    ("tuned", "is_worth_it"), [(None, False), (Taking(), False), (Taking(JOINED_NORM.name, _halved), True)]
)
def test_it_is_worth_it_where_something_was_chosen(tuned: Taking | None, is_worth_it: bool) -> None:
    spec, norm = use().norm, (torch.ones(LEFT + RIGHT), None)
    assert joined.is_worth_joining(images(), norm, spec, AS_IT_COMES._replace(tuned=tuned)) is is_worth_it


class Seeing(Taking):
    """Keeps what it is asked about."""

    def implementation(self, operator: Any, args: Arguments) -> Implementation | None:
        self.seen = getattr(self, "seen", [])
        self.seen.append(args)
        return None


def test_what_is_asked_about_is_what_is_computed() -> None:
    pair, (_, weights, spec), seeing = images(), block(torch.float32), Seeing()
    rules = Rules(HALF, torch.float32, seeing)
    norm = weights.norm_in, weights.norm_in_bias
    joined.is_worth_joining(pair, norm, spec.norm_in, rules)
    joined.norm_silu(pair, norm, spec.norm_in, rules)
    first, second = seeing.seen
    assert all(a is b for a, b in zip(first[:4], (*pair, *norm), strict=True))
    assert first[4] == second[4] == use(rules)


UNFIT: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {
    "height": ((2, 3, 5, 7), torch.float32),
    "width": ((2, 3, 4, 8), torch.float32),
    "batch": ((1, 3, 4, 7), torch.float32),
    "dimensions": ((2, 3, 4), torch.float32),
    "dtype": ((2, 3, 4, 7), torch.float16),
}


def test_images_of_any_channels_fit() -> None:
    assert joined.fit(torch.ones(2, 9, 4, 7), torch.ones(2, 3, 4, 7))


@pytest.mark.parametrize("name", UNFIT)
def test_images_that_differ_otherwise_do_not_fit(name: str) -> None:
    shape, dtype = UNFIT[name]
    assert not joined.fit(torch.ones(2, 9, 4, 7), torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("form", FORMATS)
def test_room_is_laid_out_as_the_joined_image(form: str) -> None:
    pair = images(form=form, dtype=HALF)
    room, whole = joined.room_for(pair), torch.cat(pair, dim=1)
    assert (room.shape, room.stride(), room.dtype) == (whole.shape, whole.stride(), whole.dtype)


def _clock(sides: Mapping[str, Side], device: torch.device) -> dict[str, list[float]]:
    return {name: [2.0 if name == TORCH else 1.0] * 10 for name in sides}


@pytest.mark.parametrize(("run", "winner"), [(JOINED_NORM.plain, "quick"), (_halved, TORCH)])
def test_a_contest_has_a_verdict(run: Any, winner: str) -> None:
    operator = JOINED_NORM._replace(others=lambda *args: [Implementation("quick", run)])
    verdict = hold(operator, arguments(), None, _clock)
    assert verdict.code == winner
    assert ("differs by" in verdict.reason) == (winner == TORCH)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMATS)
@torch.no_grad()
def test_on_a_gpu_nobody_is_out(form: str) -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    left, right = (torch.randn(2, n, 24, 20, device="cuda", generator=draw).half() for n in (320, 640))
    pair = [each.contiguous(memory_format=FORMATS[form]) for each in (left, right)]
    affine = torch.randn(2, 960, device="cuda", generator=draw).half()
    use = GroupNormUse(GroupNormSpec(32, 1e-5, upcast=True), True, torch.float32, torch.float16)
    args = (*pair, *affine, use)
    verdict = hold(JOINED_NORM, args, None)
    assert sorted(verdict.ms) == sorted([TORCH, *(each.name for each in JOINED_NORM.others(*args))])
