"""Small blocks of each kind that is compiled, calls of them, and back ends that cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.kinds import KINDS, compute
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.res import ResSpec
from lib_accel.blocks.rules import AS_IT_COMES, Rules
from lib_accel.blocks.transformer import AttentionSpec, BlockSpec, FeedForwardSpec
from lib_accel.graphs.compiler import Backend, Compiler, Graph
from lib_accel.graphs.structure import (
    Condition,
    Inputs,
    Structure,
    condition_of,
    normalized,
    sizes_of,
    structure_of,
)
from lib_accel.graphs.worker import Part

CHANNELS, EMB, CONTEXT = 16, 12, 24

_NORM, _CONV = GroupNormSpec(4, 1e-5, True), ConvSpec(padding=(1, 1))


class Block(NamedTuple):
    """A block of one checkpoint."""

    kind: str
    spec: Any
    weights: tuple[Tensor | None, ...]

    def called(self, x: Tensor, besides: Tensor | None) -> Inputs:
        """What it is called with, in the form that graphs take."""
        inputs = normalized(x, besides, self.weights)
        assert inputs is not None
        return inputs

    def structure(self) -> Structure:
        """What it has in common with others."""
        return structure_of(self.kind, self.spec, Inputs(torch.empty(0), None, self.weights))

    def direct(self, inputs: Inputs, rules: Rules = AS_IT_COMES) -> Tensor:
        """The output of our function as it stands."""
        return compute(KINDS[self.kind], inputs.x, inputs.besides, inputs.weights, self.spec, rules)

    def replaced(self, change: Callable[[Tensor], Tensor]) -> Block:
        """The same block with every weight changed."""
        return self._replace(weights=tuple(None if w is None else change(w) for w in self.weights))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that leave torch's global ones alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def residual(channels: int = CHANNELS, out: int = CHANNELS, seed: int = 0) -> Block:
    """A residual block."""
    shapes: list[tuple[int, ...]] = [(channels,)] * 2 + [(out, channels, 3, 3), (out,), (out, EMB), (out,)]
    shapes += [(out,), (out,), (out, out, 3, 3), (out,)]
    if channels != out:
        shapes += [(out, channels, 1, 1), (out,)]
    skip = None if channels == out else ConvSpec()
    return Block("residual", ResSpec(_NORM, _CONV, _NORM, _CONV, skip), _weights(shapes, seed))


def transformer(channels: int = CHANNELS, context: int = CONTEXT, heads: int = 2, seed: int = 0) -> Block:
    """A transformer block."""

    def attention(source: int) -> list[tuple[int, ...] | None]:
        projections = [(channels, channels), None, (channels, source), None, (channels, source), None]
        return [(channels,), (channels,), *projections, (channels, channels), (channels,)]

    feed_forward = [(channels,), (channels,), (8 * channels, channels), (8 * channels,)]
    shapes = [*attention(channels), *attention(context), *feed_forward, (channels, 4 * channels), (channels,)]
    each = AttentionSpec(1e-5, heads)
    spec = BlockSpec(each, False, each, FeedForwardSpec(1e-5))
    return Block("transformer block", spec, _weights(shapes, seed))


def _weights(shapes: Sequence[tuple[int, ...] | None], seed: int) -> tuple[Tensor | None, ...]:
    return tuple(
        None if shape is None else _scaled(drawn(*shape, seed=seed + 100 * number))
        for number, shape in enumerate(shapes)
    )


def _scaled(weight: Tensor) -> Tensor:
    """So that every operation of a block counts."""
    return weight / weight[0].numel() ** 0.5 if weight.dim() > 1 else 0.3 * weight + 0.5


# One batch, then others; heights, widths and numbers of tokens that are odd, equal, and one.
_RESIDUAL_SIZES = [(2, 8, 8), *((batch, 6, 10) for batch in range(1, 8)), (3, 7, 5), (2, 1, 1), (1, 1, 1)]
_TRANSFORMER_SIZES = [
    (2, 64, 77),
    *((batch, 60, 154) for batch in range(1, 8)),
    (3, 35, 231),
    (2, 1, 77),
    (2, 77, 77),
    (1, 1, 231),
]


def calls(block: Block, seed: int = 0) -> list[Inputs]:
    """Calls of a block of many sizes."""
    if block.kind == "residual":
        channels = block.structure().weights[0]
        assert channels
        return [
            block.called(drawn(batch, *channels, high, wide, seed=seed), drawn(batch, EMB, seed=seed))
            for batch, high, wide in _RESIDUAL_SIZES
        ]
    return [
        block.called(drawn(batch, tokens, CHANNELS, seed=seed), drawn(batch, prompt, CONTEXT, seed=seed))
        for batch, tokens, prompt in _TRANSFORMER_SIZES
    ]


def part(block: Block, inputs: Inputs, rules: Rules = AS_IT_COMES) -> Part:
    """The graph that a call needs."""
    return Part(block.structure(), condition_of(inputs, rules), sizes_of(inputs))


def prepared(compiler: Compiler, block: Block, inputs: Inputs, rules: Rules = AS_IT_COMES) -> Graph:
    """The graph for a call."""
    return compiler.prepare(*part(block, inputs, rules))


def taken(graph: Graph, inputs: Inputs) -> Tensor:
    """What the graph gives for a call, which it must take."""
    output, was_taken = graph.run(inputs)
    assert was_taken
    return output


class Backends:
    """A back end that runs each graph as it was traced, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, condition: Condition) -> Backend:
        return self._compile

    def _compile(self, module: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return module.forward  # type: ignore[no-any-return]


def difference(ours: Tensor, stock: Tensor) -> float:
    """Relative L2 distance."""
    return float((ours.double() - stock.double()).norm() / stock.double().norm())
