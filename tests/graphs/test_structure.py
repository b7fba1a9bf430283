"""Blocks share a graph if they may, and never if they may not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_accel.blocks.rules import AS_IT_COMES, Rules
from lib_accel.graphs.structure import (
    Condition,
    Inputs,
    Sizes,
    condition_of,
    digest,
    example,
    is_channels_last,
    normalized,
    sizes_of,
    structure_of,
    varying,
)
from tests.graphs.small import CONTEXT, EMB, Block, calls, drawn, part, residual, transformer

ROOT = Path(__file__).resolve().parents[2]

BLOCKS = {"residual": residual(), "transformer block": transformer()}


def of_call(block: Block, inputs: Inputs) -> object:
    """The structure, as a call finds it."""
    return structure_of(block.kind, block.spec, inputs)


# What structures have in common


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_batch_size_and_prompt_are_in_neither_structure_nor_condition(block: Block) -> None:
    found = calls(block)
    assert {sizes_of(inputs) for inputs in found} == {part(block, inputs).sizes for inputs in found}
    assert len({(of_call(block, inputs), condition_of(inputs, AS_IT_COMES)) for inputs in found}) == 1


@pytest.mark.parametrize("make", [residual, transformer])
def test_checkpoints_have_the_same_structures(make: Callable[..., Block]) -> None:
    assert make(seed=1).structure() == make(seed=2).structure()


@pytest.mark.parametrize(
    "change",
    [
        nn.Parameter,
        lambda weight: nn.Parameter(weight, requires_grad=False),
        lambda weight: weight.clone().requires_grad_(),
        lambda weight: weight.clone() * 2,
    ],
    ids=["Parameter", "frozen Parameter", "tensor with gradient", "tensor"],
)
def test_a_weight_is_a_weight_whatever_it_is_held_in(change: Callable[[Tensor], Tensor]) -> None:
    block = residual()
    inputs = calls(block)[0]
    other = normalized(inputs.x, inputs.besides, block.replaced(change).weights)
    assert other is not None
    assert all(type(weight) is Tensor and not weight.requires_grad for weight in other.weights)
    assert (of_call(block, other), condition_of(other, AS_IT_COMES)) == part(block, inputs)[:2]


CONTEXTS: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda context: context[:1].expand(2, -1, -1),
    "strided": lambda context: context.repeat(1, 2, 1)[:, ::2],
    "transposed": lambda context: context.mT.contiguous().mT,
    "cut off": lambda context: torch.cat([context, context], dim=1)[:, 77:],
    "with gradient": lambda context: context.clone().requires_grad_(),
    "Parameter": nn.Parameter,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_lies_in_one_way_whatever_comes(name: str) -> None:
    block = transformer()
    context = CONTEXTS[name](drawn(2, 77, CONTEXT))
    inputs = block.called(drawn(2, 64, 16), context)
    assert inputs.besides is not None
    assert inputs.besides.is_contiguous()
    assert not inputs.besides.requires_grad
    assert torch.equal(inputs.besides, context)
    assert condition_of(inputs, AS_IT_COMES) == part(block, calls(block)[0]).condition


def test_weights_are_the_same_memory_after_they_were_normalized() -> None:
    block = residual()
    found = calls(block)[0].weights
    assert [w.data_ptr() for w in found if w is not None] == [
        w.data_ptr() for w in block.weights if w is not None
    ]


@pytest.mark.parametrize(
    ("x", "is_last"),
    [
        (drawn(2, 16, 8, 8)[:, :, ::2, ::2], False),
        (drawn(2, 16, 8, 8).transpose(2, 3), False),
        (drawn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last), True),
        (drawn(2, 16, 8, 8), False),
    ],
)
def test_an_image_lies_in_one_of_two_ways(x: Tensor, is_last: bool) -> None:
    inputs = residual().called(x, drawn(2, EMB))
    assert torch.equal(inputs.x, x)
    assert inputs.x.is_contiguous() is not is_last
    assert condition_of(inputs, AS_IT_COMES).layout == ("channels-last" if is_last else "channels-first")


# What tells them apart


@pytest.mark.parametrize(
    "other",
    [
        residual(channels=8),
        residual(out=8),
        residual()._replace(spec=residual().spec._replace(skip=residual(out=8).spec.skip)),
        residual()._replace(
            spec=residual().spec._replace(norm_in=residual().spec.norm_in._replace(upcast=False))
        ),
        residual()._replace(weights=(*residual().weights[:-1], None)),
        transformer(),
    ],
    ids=["channels", "out", "skip", "upcast", "no bias", "kind"],
)
def test_other_shapes_specs_and_kinds_are_other_structures(other: Block) -> None:
    assert other.structure() != residual().structure()


@pytest.mark.parametrize("other", [transformer(context=32), transformer(heads=4)], ids=["context", "heads"])
def test_other_contexts_and_heads_are_other_structures(other: Block) -> None:
    assert other.structure() != transformer().structure()


def condition(**changes: object) -> Condition:
    """The condition of a call of a residual block, some of it changed."""
    block = residual()
    return part(block, calls(block)[0]).condition._replace(**changes)  # type: ignore[arg-type]


def called(change: Callable[[Tensor], Tensor], *, weights: bool = False) -> Condition:
    """The condition of a call with a changed image, or with changed weights."""
    block = residual()
    if weights:
        block = block.replaced(change)
    x, emb = drawn(2, 16, 8, 8), drawn(2, EMB)
    return condition_of(block.called(x if weights else change(x), emb), AS_IT_COMES)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (called(Tensor.bfloat16), condition(dtype=torch.bfloat16)),
        (called(Tensor.bfloat16, weights=True), condition(dtypes=(torch.bfloat16,) * 10)),
        (called(channels_last), condition(layout="channels-last")),
        (called(channels_last, weights=True), condition(weights_layout="channels-last")),
    ],
    ids=["dtype", "dtype of weights", "layout", "layout of weights"],
)
def test_dtype_and_layout_are_in_the_condition(found: Condition, expected: Condition) -> None:
    assert found == expected != condition()


def test_the_dtype_of_what_comes_besides_is_in_the_condition() -> None:
    block = residual()
    inputs = calls(block)[0]
    assert inputs.besides is not None
    other = inputs._replace(besides=inputs.besides.double())
    assert condition_of(other, AS_IT_COMES) == condition(dtype_besides=torch.float64) != condition()


def test_inference_mode_and_the_rules_are_in_the_condition() -> None:
    inputs, rules = calls(residual())[0], Rules(matmul=torch.bfloat16)
    assert condition_of(inputs, rules) == condition(rules=rules) != condition()
    expected = condition(is_inference=True)
    with torch.inference_mode():
        assert condition_of(inputs, AS_IT_COMES) == expected != condition()


def test_tensors_made_in_inference_mode_are_told_from_others() -> None:
    with torch.inference_mode():
        x = drawn(2, 16, 8, 8)
    found = condition_of(residual().called(x, drawn(2, EMB)), AS_IT_COMES)
    assert found == condition(made_in_inference=(True, *[False] * 11)) != condition()


def test_a_1x1_convolution_says_nothing_of_the_layout_of_weights() -> None:
    weight = drawn(16, 16, 1, 1).contiguous(memory_format=torch.channels_last)
    inputs = Inputs(drawn(2, 16, 8, 8), None, (weight, None))
    assert not is_channels_last(condition_of(inputs, AS_IT_COMES))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Sizes((2, 320, 64, 64), None), Sizes((2, 640, 64, 64), None)),
        (Sizes((2, 320, 64, 64), None), Sizes((2, 320, 72, 80), None)),
        (Sizes((2, 320, 64, 64), None), Sizes((4, 320, 32, 64), None)),
        (Sizes((2, 4096, 320), (2, 77, 768)), Sizes((2, 4608, 320), (2, 231, 768))),
    ],
)
def test_sizes_that_cost_alike_are_one_class(first: Sizes, second: Sizes) -> None:
    assert first.size_class == second.size_class


@pytest.mark.parametrize(
    "other", [(1, 320, 128, 64), (2, 320, 32, 64), (2, 320, 128, 64), (2, 2880, 320), (4, 320, 64, 64)]
)
def test_other_sizes_are_other_classes(other: tuple[int, ...]) -> None:
    assert Sizes(other, None).size_class != Sizes((2, 320, 64, 64), None).size_class


def test_tokens_and_images_of_as_many_positions_are_one_class() -> None:
    assert Sizes((2, 4096, 320), None).size_class == Sizes((2, 320, 64, 64), None).size_class


# Names


_NAME_ELSEWHERE = """
from lib_accel.graphs.structure import digest
from tests.graphs.small import calls, part, residual
block = residual()
print(digest(*part(block, calls(block)[1])))
"""


def test_the_digest_is_the_same_in_another_process() -> None:
    block = residual()
    found = subprocess.run(
        [sys.executable, "-c", _NAME_ELSEWHERE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == digest(*part(block, calls(block)[1]))


def test_digests_differ_by_each_part() -> None:
    one, other = residual(), residual(out=8)
    parts = [part(block, inputs) for block in (one, other) for inputs in calls(block)]
    assert len({digest(*each) for each in parts}) == len(parts)
    assert len({digest(condition()), digest(condition(dtype=torch.bfloat16))}) == 2


def test_a_structure_prints_its_kind_and_largest_weight() -> None:
    assert str(residual(8, 16).structure()) == "residual 16x16x3x3"
    assert str(transformer().structure()) == "transformer block 128x16"


# What no graph takes


class Odd(Tensor):
    """A tensor that may do anything when it is used."""


class OddParameter(nn.Parameter):
    """A parameter likewise."""


def odd(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Odd)


@pytest.mark.parametrize(
    ("x", "besides", "weights"),
    [
        (odd(drawn(2, 16, 8, 8)), drawn(2, EMB), residual().weights),
        (drawn(2, 16, 8, 8), odd(drawn(2, EMB)), residual().weights),
        (drawn(2, 16, 8, 8), [drawn(2, EMB)], residual().weights),
        (drawn(2, 16, 8, 8), drawn(2, EMB), residual().replaced(odd).weights),
        (drawn(2, 16, 8, 8), drawn(2, EMB), residual().replaced(OddParameter).weights),
    ],
    ids=["x", "besides", "list besides", "weight", "Parameter"],
)
def test_nothing_but_plain_tensors_is_taken(
    x: Tensor, besides: object, weights: tuple[Tensor | None, ...]
) -> None:
    assert normalized(x, besides, weights) is None


# Examples


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_an_example_is_of_the_structure_and_condition_that_it_stands_for(block: Block) -> None:
    for inputs in calls(block)[:3]:
        wanted = part(block, inputs)
        made = example(*wanted)
        assert part(block._replace(weights=made.weights), made) == wanted


@pytest.mark.parametrize(
    "wanted",
    [
        condition(layout="channels-last", weights_layout="channels-last"),
        condition(dtype=torch.bfloat16, dtypes=(torch.float16,) * 10, dtype_besides=torch.float64),
    ],
)
def test_an_example_has_layouts_and_dtypes_of_its_condition(wanted: Condition) -> None:
    sizes = Sizes((2, 16, 8, 8), (2, EMB))
    assert condition_of(example(residual().structure(), wanted, sizes), AS_IT_COMES) == wanted


def test_an_example_leaves_the_hosts_random_numbers_alone() -> None:
    wanted = part(residual(), calls(residual())[0])
    before = torch.get_rng_state()
    example(*wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_channels_and_the_width_of_a_context_do_not_vary() -> None:
    assert varying(residual().structure()) == ((0, 2, 3), (0,))
    assert varying(transformer().structure()) == ((0, 1), (0, 1))
