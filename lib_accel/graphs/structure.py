"""What blocks that share a graph have in common, and tensors like theirs to compile it with.

A graph is made for a structure under a condition. The structure is the same in every checkpoint and control
model of a family; the condition is where and in which numbers it runs. Sizes are in neither: they vary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.blocks.kinds import KINDS
from lib_accel.blocks.rules import Rules

# Tensors of any other class may do anything when they are used.
_PLAIN = (Tensor, nn.Parameter)

_TOKENS = "tokens"
_CHANNELS_FIRST = "channels-first"
_CHANNELS_LAST = "channels-last"


class Structure(NamedTuple):
    """A kind, what of the block is not a tensor, and the shapes of its weights, None for a missing one."""

    kind: str  # a key of KINDS
    spec: Any
    weights: tuple[tuple[int, ...] | None, ...]

    def __str__(self) -> str:
        largest = max((shape for shape in self.weights if shape), key=math.prod, default=())
        return f"{self.kind} {'x'.join(map(str, largest))}"


class Condition(NamedTuple):
    """Where and in which numbers a structure runs."""

    device: str
    rules: Rules
    dtype: torch.dtype  # of x
    dtype_besides: torch.dtype | None  # of what the kind takes besides
    dtypes: tuple[torch.dtype | None, ...]  # of the weights
    layout: str  # of x
    weights_layout: str
    is_inference: bool  # torch.inference_mode
    made_in_inference: tuple[bool, ...]  # which tensors were made in it: they carry other keys ever after


class Sizes(NamedTuple):
    """The sizes of one call."""

    x: tuple[int, ...]
    besides: tuple[int, ...] | None

    @property
    def size_class(self) -> str:
        """Sizes that cost alike by position: a batch of one or more, and the positions by powers of two."""
        batch, *others = self.x
        positions = batch * (others[0] if len(others) == 2 else math.prod(others[1:]))
        # By the nearest power, as sizes of operators count, so that what a class calls has one winner.
        return f"{'1' if batch == 1 else 'n'}x{round(math.log2(max(positions, 1)))}"


class Inputs(NamedTuple):
    """What a block is called with."""

    x: Tensor
    besides: Tensor | None
    weights: tuple[Tensor | None, ...]


def normalized(x: Tensor, besides: Any, weights: Sequence[Any]) -> Inputs | None:
    """Plain tensors of the same values and no history, in one of the layouts that graphs are made for.

    None if there is something among them that no graph takes. Parameters and tensors, with and without
    gradients, expanded and strided contexts would otherwise be a graph each.
    """
    if not (besides is None or type(besides) in _PLAIN) or type(x) not in _PLAIN:
        return None
    if any(not (weight is None or type(weight) in _PLAIN) for weight in weights):
        return None
    x = x.detach()
    if not x.is_contiguous() and not _is_channels_last(x):
        x = x.contiguous()
    besides = None if besides is None else besides.detach().contiguous()
    return Inputs(x, besides, tuple([None if weight is None else weight.detach() for weight in weights]))


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def structure_of(kind: str, spec: Any, inputs: Inputs) -> Structure:
    """The structure of a block."""
    return Structure(
        kind, spec, tuple(None if weight is None else tuple(weight.shape) for weight in inputs.weights)
    )


def condition_of(inputs: Inputs, rules: Rules) -> Condition:
    """The condition of a call."""
    return Condition(
        device=str(inputs.x.device),
        rules=rules,
        dtype=inputs.x.dtype,
        dtype_besides=None if inputs.besides is None else inputs.besides.dtype,
        dtypes=tuple(None if weight is None else weight.dtype for weight in inputs.weights),
        layout=_layout(inputs.x),
        weights_layout=_weights_layout(inputs.weights),
        is_inference=torch.is_inference_mode_enabled(),
        made_in_inference=tuple(
            each is not None and each.is_inference() for each in (inputs.x, inputs.besides, *inputs.weights)
        ),
    )


def sizes_of(inputs: Inputs) -> Sizes:
    """The sizes of a call."""
    return Sizes(tuple(inputs.x.shape), None if inputs.besides is None else tuple(inputs.besides.shape))


def _layout(x: Tensor) -> str:
    if x.dim() != 4:
        return _TOKENS
    return _CHANNELS_FIRST if x.is_contiguous() else _CHANNELS_LAST


def _weights_layout(weights: Sequence[Tensor | None]) -> str:
    """Channels-last if a convolution's weight lies so that it could not lie channels-first too."""
    kernels = [weight for weight in weights if weight is not None and weight.dim() == 4]
    return _CHANNELS_FIRST if all(weight.is_contiguous() for weight in kernels) else _CHANNELS_LAST


def is_channels_last(condition: Condition) -> bool:
    """Whether convolution weights lie in memory with their channels last."""
    return condition.weights_layout == _CHANNELS_LAST


def example(structure: Structure, condition: Condition, sizes: Sizes) -> Inputs:
    """Random tensors like those of a block; own random numbers, the host's are left alone."""
    source = torch.Generator(condition.device).manual_seed(0)

    def drawn(shape: Sequence[int], dtype: torch.dtype, layout: str, is_inference: bool) -> Tensor:
        with torch.inference_mode(is_inference), torch.no_grad():
            values = torch.randn(shape, generator=source, device=condition.device).mul_(0.05).to(dtype)
            is_last = layout == _CHANNELS_LAST and values.dim() == 4
            return values.contiguous(memory_format=torch.channels_last) if is_last else values

    x_made, besides_made, *weights_made = condition.made_in_inference
    weights = tuple(
        None if shape is None or dtype is None else drawn(shape, dtype, condition.weights_layout, made)
        for shape, dtype, made in zip(structure.weights, condition.dtypes, weights_made, strict=True)
    )
    besides = None
    if sizes.besides is not None and condition.dtype_besides is not None:
        besides = drawn(sizes.besides, condition.dtype_besides, _TOKENS, besides_made)
    return Inputs(drawn(sizes.x, condition.dtype, condition.layout, x_made), besides, weights)


def varying(structure: Structure) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions that vary, of x and of what the kind takes besides."""
    kind = KINDS[structure.kind]
    return kind.varies, kind.varies_besides


def digest(*parts: Any) -> str:
    """A short name for values that print themselves wholly, the same in every process."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
