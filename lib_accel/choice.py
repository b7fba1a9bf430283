"""Which code each block of a unit runs: our function, or the live module with the reason why.

A unit is what a host calls in one go: a container of several blocks, or a single block. Layouts say what
blocks it has (`Candidate`), `choose` turns them into steps. A transformer falls back part by part, so that a
replaced cross-attention costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from lib_accel.blocks import encoder, image, res, sample, transformer
from lib_accel.blocks.rules import Rules
from lib_accel.errors import LayoutError
from lib_accel.layouts.reading import Candidate, Part, Reading
from lib_accel.layouts.slots import Slot

Weights = Sequence[Any]  # of a whole unit, None for a missing bias


class Call(Protocol):
    """What the steps of one call of a model share."""

    @property
    def rules(self) -> Rules:
        """The dtypes that our functions follow."""

    @property
    def attention_reason(self) -> str | None:
        """Why attention stays with the host in this call, or None."""

    def as_host(self) -> AbstractContextManager[None]:
        """Autocast as the host set it, for a live module among our functions."""


class Step(Protocol):
    """One block of a unit: what it runs, and why if that is the live module."""

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        """The block's output; `weights` are those of the whole unit."""

    def reasons(self, attention_reason: str | None) -> list[str]:
        """Why parts of the block run as the live module, if attention is held back or not; else empty."""


class HostFailure(Exception):
    """An error of the host's own code among ours: it comes out as it is, and nothing is run again."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _SlotList:
    """The slots of a unit as they are found; a step keeps the range that is its own."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []

    def add(self, reading: Reading) -> slice:
        start = len(self.slots)
        self.slots.extend(reading.slots)
        return slice(start, len(self.slots))


class _Live:
    """The live module, called as its owner calls it."""

    def __init__(self, reason: str, call_live: Callable[[Tensor, Any, Any], Tensor]) -> None:
        self._reason, self._call_live = reason, call_live

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        with call.as_host():
            try:
                return self._call_live(x, emb, context)
            except Exception as error:
                raise HostFailure(error) from None

    def reasons(self, attention_reason: str | None) -> list[str]:
        return [self._reason]


class _Direct:
    """One of our functions with the weights and the spec of one block."""

    def __init__(self, function: Callable[..., Tensor], weights_type: Any, own: slice, spec: Any) -> None:
        self._function, self._weights_type, self._own, self._spec = function, weights_type, own, spec

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        return self._function(x, self._weights_type(*weights[self._own]), self._spec, call.rules)

    def reasons(self, attention_reason: str | None) -> list[str]:
        return []


class _DirectWithEmb(_Direct):
    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        return self._function(x, emb, self._weights_type(*weights[self._own]), self._spec, call.rules)


class _DirectWithContext(_Direct):
    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        return self._function(x, context, self._weights_type(*weights[self._own]), self._spec, call.rules)


class _DirectImageAttention(_Direct):
    """As any block, but it stays with the host while attention does."""

    def __init__(self, own: slice, spec: Any, call_live: Callable[[Tensor, Any, Any], Tensor] | None) -> None:
        super().__init__(image.image_attention, image.ImageAttentionWeights, own, spec)
        self._live = None if call_live is None else _Live("", call_live)

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        if self._live is not None and call.attention_reason is not None:
            return self._live.run(x, emb, context, call, weights)
        return super().run(x, emb, context, call, weights)

    def reasons(self, attention_reason: str | None) -> list[str]:
        return [] if self._live is None or attention_reason is None else [attention_reason]


class _DirectSiLU:
    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        return sample.silu(x)

    def reasons(self, attention_reason: str | None) -> list[str]:
        return []


Build = Callable[[slice, Any], Step]  # of the range of a block's weights, and of its spec

# Functions are looked up when a block is bound.
STEPS: Mapping[str, Build] = MappingProxyType(
    {
        "residual": lambda own, spec: _DirectWithEmb(res.res_block, res.ResWeights, own, spec),
        "convolution": lambda own, spec: _Direct(sample.convolution, sample.ConvWeights, own, spec),
        "upsample": lambda own, spec: _Direct(sample.upsample, sample.ConvWeights, own, spec),
        "resize": lambda own, spec: _DirectWithContext(sample.resize, sample.ConvWeights, own, spec),
        "silu": lambda own, spec: _DirectSiLU(),
        "embedding": lambda own, spec: _Direct(sample.embed, sample.EmbeddingWeights, own, spec),
        "out": lambda own, spec: _Direct(sample.out_convolution, sample.OutWeights, own, spec),
        "shrink": lambda own, spec: _Direct(image.shrink, sample.ConvWeights, own, spec),
        "encoder layer": lambda own, spec: _DirectWithContext(
            encoder.encoder_layer, encoder.EncoderWeights, own, spec
        ),
    }
)


class _Part(Protocol):
    """A part of a transformer block, or a whole one at host speed; `context` is that of this depth."""

    def run(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> Tensor: ...

    def reason(self, attention_reason: str | None) -> str | None: ...


class _LivePart:
    def __init__(self, reason: str, call_live: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        self._reason, self._call_live = reason, call_live

    def run(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> Tensor:
        with call.as_host():
            try:
                return self._call_live(x, context)
            except Exception as error:
                raise HostFailure(error) from None

    def reason(self, attention_reason: str | None) -> str | None:
        return self._reason


class _DirectAttention:
    def __init__(self, own: slice, spec: Any, with_context: bool, live: _LivePart) -> None:
        self._own, self._spec, self._with_context, self._live = own, spec, with_context, live

    def run(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> Tensor:
        if call.attention_reason is not None:
            return self._live.run(x, context, call, weights)
        own = transformer.AttentionWeights(*weights[self._own])
        return transformer.attend(x, context if self._with_context else None, own, self._spec, call.rules)

    def reason(self, attention_reason: str | None) -> str | None:
        return attention_reason


class _DirectFeedForward:
    def __init__(self, own: slice, spec: Any) -> None:
        self._own, self._spec = own, spec

    def run(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> Tensor:
        own = transformer.FeedForwardWeights(*weights[self._own])
        return transformer.feed_forward(x, own, self._spec, call.rules)

    def reason(self, attention_reason: str | None) -> str | None:
        return None


class _DirectTransformer:
    """Our frame around the parts of each block, our own or live."""

    def __init__(self, own: slice, spec: Any, blocks: Sequence[Sequence[_Part]]) -> None:
        self._own, self._spec, self._blocks = own, spec, blocks

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        contexts = context if isinstance(context, list) else [context]
        own = transformer.FrameWeights(*weights[self._own])
        tokens = transformer.enter(x, own, self._spec, call.rules)
        for depth, parts in enumerate(self._blocks):
            here = contexts[depth if len(contexts) > 1 else 0]
            for part in parts:
                tokens = part.run(tokens, here, call, weights)
        return transformer.leave(tokens, x, own, call.rules)

    def reasons(self, attention_reason: str | None) -> list[str]:
        found = (part.reason(attention_reason) for parts in self._blocks for part in parts)
        return list(dict.fromkeys(reason for reason in found if reason is not None))


def choose(candidates: Iterable[Candidate]) -> tuple[list[Step], list[Slot]]:
    """The steps of a unit's blocks, and the slots of the weights that the steps read.

    Raises LayoutError if a block cannot be read that only the unit's owner knows how to call.
    """
    slots = _SlotList()
    steps = [_choose_block(candidate, slots) for candidate in candidates]
    return steps, slots.slots


def _choose_block(candidate: Candidate, slots: _SlotList) -> Step:
    try:
        reading = candidate.read()
        if candidate.kind == "image attention":
            return _DirectImageAttention(slots.add(reading), reading.spec, candidate.call_live)
        if candidate.parts is None:
            return STEPS[candidate.kind](slots.add(reading), reading.spec)
        depths = candidate.parts()
    except (LayoutError, AttributeError) as error:
        # An attribute that the class promises and the instance lacks: somebody rebuilt the block.
        if candidate.call_live is None:
            raise LayoutError(str(error)) from None
        return _Live(str(error), candidate.call_live)
    own = slots.add(reading)
    return _DirectTransformer(
        own, reading.spec, [[_choose_part(part, slots) for part in parts] for parts in depths]
    )


def _choose_part(part: Part, slots: _SlotList) -> _Part:
    try:
        reading = part.read()
    except (LayoutError, AttributeError) as error:
        return _LivePart(f"{part.label}: {error}" if part.label else str(error), part.call_live)
    own = slots.add(reading)
    if part.kind == "feed-forward":
        return _DirectFeedForward(own, reading.spec)
    with_context = part.kind == "cross attention"
    return _DirectAttention(own, reading.spec, with_context, _LivePart("", part.call_live))
