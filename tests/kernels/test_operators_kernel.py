"""Operators of blocks give by our kernels what they give in plain torch, and so do the blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks import transformer
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.layer_norm import LayerNormUse
from lib_accel.blocks.operators.operator import Arguments
from lib_accel.blocks.operators.prefer import Prefer
from lib_accel.blocks.operators.table import OPERATORS
from lib_accel.blocks.res import ResSpec, ResWeights, res_block
from lib_accel.blocks.rules import AS_IT_COMES, Rules
from lib_accel.graphs.proof import difference, tolerance
from tests.kernels.place import LAYOUTS, MARKS, random

pytestmark = MARKS

_CHANNELS, _OUT, _GROUPS = 16, 32, 4
_AROUND = ConvSpec(padding=(1, 1))

# As under autocast of a GPU, whose norms are float32; and of a model in one dtype.
_RULES = {"autocast": Rules(torch.float16, torch.float32), "as it comes": AS_IT_COMES}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, dtype=torch.float16, seed=seed)


def image(channels: int, layout: str) -> Tensor:
    return drawn(2, channels, 5, 7).contiguous(memory_format=LAYOUTS[layout])


def kernel_of(channels: int, layout: str) -> Tensor:
    return (drawn(_OUT, channels, 3, 3) / 10).contiguous(memory_format=LAYOUTS[layout])


def norm_of(rules: Rules) -> GroupNormSpec:
    return GroupNormSpec(_GROUPS, 1e-5, upcast=rules.norm is not None)


def _use(rules: Rules) -> GroupNormUse:
    return GroupNormUse(norm_of(rules), True, rules.norm, rules.matmul)


def tokens() -> Tensor:
    return drawn(2, 9, _CHANNELS)


def affine() -> tuple[Tensor, Tensor]:
    return drawn(_CHANNELS), drawn(_CHANNELS, seed=1)


# Arguments of each operator that a kernel of ours computes.
_CALLS: dict[str, Callable[[str, Rules], Arguments]] = {
    "group norm": lambda layout, rules: (image(_CHANNELS, layout), *affine(), _use(rules)),
    "convolution, norm": lambda layout, rules: (
        image(_CHANNELS, layout),
        *(kernel_of(_CHANNELS, layout), drawn(_OUT), drawn(2, _OUT), drawn(_OUT), drawn(_OUT, seed=1)),
        *(_AROUND, _use(rules), rules.matmul),
    ),
    "convolution, residual": lambda layout, rules: (
        image(_CHANNELS, layout),
        *(kernel_of(_CHANNELS, layout), drawn(_OUT), image(_OUT, layout), _AROUND, rules.matmul),
    ),
    "layer norm": lambda layout, rules: (
        tokens(),
        *affine(),
        LayerNormUse(1e-5, rules.norm, rules.matmul),
    ),
    "gated linear": lambda layout, rules: (
        tokens(),
        *(drawn(2 * _OUT, _CHANNELS) / 4, drawn(2 * _OUT), rules.matmul),
    ),
    "linear, residual": lambda layout, rules: (
        tokens(),
        *(drawn(_OUT, _CHANNELS) / 4, drawn(_OUT), drawn(2, 9, _OUT), rules.matmul),
    ),
}


@pytest.mark.parametrize("rules", _RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", _CALLS)
def test_every_implementation_gives_what_plain_torch_gives(name: str, layout: str, rules: str) -> None:
    operator, args = OPERATORS[name], _CALLS[name](layout, _RULES[rules])
    right = operator.plain(*args)
    others = [each for each in operator.others(*args) if each.name.startswith("Triton")]
    assert others
    for other in others:
        result = other.run(*args)
        assert result.dtype is right.dtype
        assert result.stride() == right.stride()
        assert difference(result, right) <= tolerance(name, right.dtype), other.name


@pytest.mark.parametrize("rules", _RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_residual_blocks_are_the_same_by_kernels(layout: str, rules: str) -> None:
    args, spec = residual(layout, norm_of(_RULES[rules]))
    right = res_block(*args, spec, _RULES[rules])
    ours = res_block(*args, spec, _RULES[rules]._replace(tuned=Prefer("Triton")))
    assert ours.stride() == right.stride()
    assert difference(ours, right) <= tolerance("residual", right.dtype)


def residual(layout: str, norm: GroupNormSpec) -> tuple[tuple[Any, ...], ResSpec]:
    weights = ResWeights(
        *affine(),
        *(kernel_of(_CHANNELS, layout), drawn(_OUT), drawn(_OUT, 8) / 3, drawn(_OUT)),
        *(drawn(_OUT), drawn(_OUT, seed=1), kernel_of(_OUT, layout), drawn(_OUT)),
        *(drawn(_OUT, _CHANNELS, 1, 1) / 4, drawn(_OUT)),
    )
    spec = ResSpec(norm, _AROUND, norm, _AROUND, ConvSpec())
    return (image(_CHANNELS, layout), drawn(2, 8), weights), spec


@pytest.mark.parametrize("rules", _RULES)
def test_transformer_blocks_are_the_same_by_kernels(rules: str) -> None:
    wide, seen = _CHANNELS, 12
    attention = [
        [*affine(), drawn(wide, wide) / 4, None, *4 * [None], drawn(wide, wide) / 4, drawn(wide)]
        for _ in range(2)
    ]
    for own, width in zip(attention, (wide, seen), strict=True):
        own[4], own[6] = drawn(wide, width) / 4, drawn(wide, width, seed=1) / 4
    last = [*affine(), drawn(8 * wide, wide) / 4, drawn(8 * wide), drawn(wide, 4 * wide) / 8, drawn(wide)]
    weights = transformer.block_weights(*attention[0], *attention[1], *last)
    part = transformer.AttentionSpec(1e-5, 2)
    spec = transformer.BlockSpec(part, False, part, transformer.FeedForwardSpec(1e-5))
    args = drawn(2, 9, wide), drawn(2, 5, seen), weights, spec
    right = transformer.transformer_block(*args, _RULES[rules])
    ours = transformer.transformer_block(*args, _RULES[rules]._replace(tuned=Prefer("Triton")))
    assert difference(ours, right) <= tolerance("transformer block", right.dtype)
