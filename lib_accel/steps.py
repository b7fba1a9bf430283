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

from lib_accel.blocks import joined, res, sample, transformer
from lib_accel.blocks.kinds import CONTEXT, EMB, KINDS, compute
from lib_accel.blocks.operators import layout
from lib_accel.blocks.operators.operator import Arguments
from lib_accel.blocks.rules import Rules
from lib_accel.choice import Block, Choice
from lib_accel.errors import LayoutError
from lib_accel.graphs.proof import COMPILED, DIRECT, HOST
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

    @property
    def choice(self) -> Choice | None:
        """Who chooses among the codes of a block; None where direct code is all there is."""

    @property
    def is_forced(self) -> bool:
        """Whether compiled code is asked for, be it faster or not."""

    @property
    def may_prove(self) -> bool:
        """Whether graphs may be proved in it, which waits for the device."""

    @property
    def note_residual(self) -> Callable[[Arguments], None] | None:
        """Who hears of residual blocks, as arguments of operators.layout, or None."""

    @property
    def note_attention(self) -> Callable[[Arguments], None] | None:
        """Who hears of attention parts, as arguments of operators.projections, or None."""

    def as_host(self) -> AbstractContextManager[None]:
        """Autocast as the host set it, for a live module among our functions."""


class Step(Protocol):
    """One block of a unit: what it runs, and why if that is the live module."""

    chosen: str | None  # the code that the choice took at the latest call, if it is not direct

    @property
    def kernels(self) -> int:
        """About how many kernels a GPU runs for it."""

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

    chosen: str | None = None
    kernels = 0  # nobody knows

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


LiveBlock = Callable[[Tensor, Any, Any], Tensor] | None


class _Direct:
    """One of our functions with the weights and the spec of one block, compiled where that was chosen."""

    def __init__(self, kind: str, own: slice, spec: Any, call_live: LiveBlock) -> None:
        self._block, self._own, self._spec = Block(kind, spec), own, spec
        self._live = None if call_live is None else _Live("", call_live)
        self.chosen: str | None = None
        self.kernels = self._block.kind.kernels

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        kind = self._block.kind
        besides = emb if kind.takes == EMB else context if kind.takes == CONTEXT else None
        own = weights[self._own]
        if call.note_residual is not None and self._block.name == "residual":
            call.note_residual(layout.arguments(x, besides, own, self._spec, call.rules))
        if call.choice is None:
            self.chosen = None
            return compute(kind, x, besides, own, self._spec, call.rules)
        live = self._live
        result, code = call.choice.run(
            self._block,
            x,
            besides,
            own,
            call.rules,
            None if live is None else lambda: live.run(x, emb, context, call, weights),
            is_forced=call.is_forced,
            may_prove=call.may_prove,
        )
        self.chosen = None if code == DIRECT else code
        return result

    def reasons(self, attention_reason: str | None) -> list[str]:
        return []


class Residual(_Direct):
    """As any block; and of two images that lie side by side, which it joins by itself."""

    def __init__(self, own: slice, spec: res.ResSpec, call_live: LiveBlock) -> None:
        super().__init__("residual", own, spec, call_live)

    def is_worth_joining(self, images: joined.Images, call: Call, weights: Weights) -> bool:
        """Whether `run_joined` was measured to be faster, in a call that has no other code to choose."""
        if call.choice is not None:
            return False
        own = res.ResWeights(*weights[self._own])
        norm = own.norm_in, own.norm_in_bias
        return joined.is_worth_joining(images, norm, self._spec.norm_in, call.rules)

    def run_joined(self, images: joined.Images, emb: Any, call: Call, weights: Weights) -> Tensor:
        """The block's output of `torch.cat(images, dim=1)`, by direct code."""
        own = res.ResWeights(*weights[self._own])
        self.chosen = None
        if call.note_residual is not None:
            # Who listens reads no values, and nobody holds what it hears.
            call.note_residual(layout.arguments(joined.room_for(images), emb, own, self._spec, call.rules))
        return res.res_block(images, emb, own, self._spec, call.rules)


class _DirectResize:
    """To twice the size, which is the block that others have for it, or to a given one."""

    def __init__(self, own: slice, spec: Any, call_live: LiveBlock) -> None:
        self._doubling = _Direct("upsample", own, spec, call_live)
        self._resizing = _Direct("resize", own, spec, call_live)
        self.chosen: str | None = None
        self.kernels = self._resizing.kernels

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        step = self._doubling if context is None else self._resizing
        result = step.run(x, emb, context, call, weights)
        self.chosen = step.chosen
        return result

    def reasons(self, attention_reason: str | None) -> list[str]:
        return []


class _DirectImageAttention(_Direct):
    """As any block, but it stays with the host while attention does."""

    def __init__(self, own: slice, spec: Any, call_live: LiveBlock) -> None:
        super().__init__("image attention", own, spec, call_live)

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        if self._live is not None and call.attention_reason is not None:
            self.chosen = None
            return self._live.run(x, emb, context, call, weights)
        return super().run(x, emb, context, call, weights)

    def reasons(self, attention_reason: str | None) -> list[str]:
        return [] if self._live is None or attention_reason is None else [attention_reason]


class _DirectSiLU:
    chosen: str | None = None
    kernels = 1

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        return sample.silu(x)

    def reasons(self, attention_reason: str | None) -> list[str]:
        return []


# Of the range of a block's weights, its spec, and how its owner calls the live module, if it can be called.
Build = Callable[[slice, Any, LiveBlock], Step]

# What is not simply a kind of block.
_BUILDS: Mapping[str, Build] = MappingProxyType(
    {
        "residual": Residual,
        "resize": _DirectResize,
        "image attention": _DirectImageAttention,
        "silu": lambda own, spec, call_live: _DirectSiLU(),
    }
)


def _build(kind: str, own: slice, spec: Any, call_live: LiveBlock) -> Step:
    build = _BUILDS.get(kind)
    return _Direct(kind, own, spec, call_live) if build is None else build(own, spec, call_live)


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
        self._own, self.spec, self.with_context, self._live = own, spec, with_context, live

    def run(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> Tensor:
        if call.attention_reason is not None:
            return self._live.run(x, context, call, weights)
        own = transformer.AttentionWeights(*weights[self._own])
        return transformer.attend(x, context if self.with_context else None, own, self.spec, call.rules)

    def note(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> None:
        """Tells who listens that this part is called, with tokens like `x`."""
        own = transformer.AttentionWeights(*weights[self._own])
        if call.note_attention is not None and transformer.may_be_packed(own):
            seen = context if self.with_context else None
            read = own.query, own.key, own.value
            call.note_attention((x, seen, *read, self.spec.heads, call.rules.matmul))

    def reason(self, attention_reason: str | None) -> str | None:
        return attention_reason


class _DirectFeedForward:
    def __init__(self, own: slice, spec: Any) -> None:
        self._own, self.spec = own, spec

    def run(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> Tensor:
        own = transformer.FeedForwardWeights(*weights[self._own])
        return transformer.feed_forward(x, own, self.spec, call.rules)

    def reason(self, attention_reason: str | None) -> str | None:
        return None


class _Depth:
    """One block of a transformer: its parts, and the whole of it where all parts are ours."""

    def __init__(self, parts: Sequence[_Part], own: slice, whole: Block | None, live: _LivePart) -> None:
        self.parts, self._own, self._whole, self._live = parts, own, whole, live
        self._attentions = [part for part in parts if isinstance(part, _DirectAttention)]

    def run(self, tokens: Tensor, context: Tensor | None, call: Call, weights: Weights) -> tuple[Tensor, str]:
        """The tokens, and the code that computed them."""
        if call.note_attention is not None and call.attention_reason is None:
            for attention in self._attentions:
                attention.note(tokens, context, call, weights)
        if self._whole is None or call.choice is None or call.attention_reason is not None:
            for part in self.parts:
                tokens = part.run(tokens, context, call, weights)
            return tokens, DIRECT
        return call.choice.run(
            self._whole,
            tokens,
            context,
            weights[self._own],
            call.rules,
            lambda: self._live.run(tokens, context, call, weights),
            is_forced=call.is_forced,
            may_prove=call.may_prove,
        )


class _DirectTransformer:
    """Our frame around the parts of each block, our own or live."""

    def __init__(self, own: slice, spec: Any, depths: Sequence[_Depth]) -> None:
        self._own, self._spec, self._depths = own, spec, depths
        self.chosen: str | None = None
        self.kernels = KINDS["transformer block"].kernels * len(depths)

    def run(self, x: Tensor, emb: Any, context: Any, call: Call, weights: Weights) -> Tensor:
        contexts = context if isinstance(context, list) else [context]
        own = transformer.FrameWeights(*weights[self._own])
        tokens = transformer.enter(x, own, self._spec, call.rules)
        codes = set()
        for number, depth in enumerate(self._depths):
            here = contexts[number if len(contexts) > 1 else 0]
            tokens, code = depth.run(tokens, here, call, weights)
            codes.add(code)
        self.chosen = codes.pop() if codes in ({COMPILED}, {HOST}) else None  # else some of it is direct
        return transformer.leave(tokens, x, own, call.rules)

    def reasons(self, attention_reason: str | None) -> list[str]:
        found = (part.reason(attention_reason) for depth in self._depths for part in depth.parts)
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
        if candidate.parts is None:
            return _build(candidate.kind, slots.add(reading), reading.spec, candidate.call_live)
        depths = candidate.parts()
    except (LayoutError, AttributeError) as error:
        # An attribute that the class promises and the instance lacks: somebody rebuilt the block.
        if candidate.call_live is None:
            raise LayoutError(str(error)) from None
        return _Live(str(error), candidate.call_live)
    own = slots.add(reading)
    return _DirectTransformer(own, reading.spec, [_choose_depth(parts, slots) for parts in depths])


def _choose_depth(parts: Sequence[Part], slots: _SlotList) -> _Depth:
    start = len(slots.slots)
    chosen = [_choose_part(part, slots) for part in parts]
    whole = None
    match chosen:
        case [
            _DirectAttention() as first,
            _DirectAttention(with_context=True) as second,
            _DirectFeedForward() as last,
        ]:
            spec = transformer.BlockSpec(first.spec, first.with_context, second.spec, last.spec)
            whole = Block("transformer block", spec)
    return _Depth(chosen, slice(start, len(slots.slots)), whole, _LivePart("", _one_by_one(parts)))


def _one_by_one(parts: Sequence[Part]) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The live parts of a block, one after the other."""

    def call_live(x: Tensor, context: Tensor | None) -> Tensor:
        for part in parts:
            x = part.call_live(x, context)
        return x

    return call_live


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
