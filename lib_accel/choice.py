"""Which code each part of a container block runs: our function, or the live module with the reason why.

A container (`TimestepEmbedSequential`) holds the blocks of one level: residual block, transformer,
resampling, convolution. `choose` turns it into steps. A transformer falls back part by part, so that a
replaced cross-attention costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from lib_accel.blocks import res, sample, transformer
from lib_accel.blocks.rules import Rules
from lib_accel.errors import LayoutError
from lib_accel.layouts import compvis
from lib_accel.layouts.compvis import Family
from lib_accel.layouts.reading import Reading, Trust, class_name, demand_clean, demand_type
from lib_accel.layouts.slots import Slot

Weights = Sequence[Any]  # of a whole container, None for a missing bias


class Call(Protocol):
    """What the steps of one UNet call share."""

    @property
    def rules(self) -> Rules:
        """The dtypes that our functions follow."""

    @property
    def attention_reason(self) -> str | None:
        """Why attention stays with the host in this call, or None."""

    def as_host(self) -> AbstractContextManager[None]:
        """Autocast as the host set it, for a live module among our functions."""


class Step(Protocol):
    """One block of a container: what it runs, and why if that is the live module."""

    def run(self, x: Tensor, emb: Tensor, context: Any, call: Call, weights: Weights) -> Tensor:
        """The block's output; `weights` are those of the whole container."""

    def reasons(self, attention_reason: str | None) -> list[str]:
        """Why parts of the block run as the live module, if attention is held back or not; else empty."""


class HostFailure(Exception):
    """An error of the host's own code among ours: it comes out as it is, and nothing is run again."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _SlotList:
    """The slots of a container as they are found; a step keeps the range that is its own."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []

    def add(self, reading: Reading) -> slice:
        start = len(self.slots)
        self.slots.extend(reading.slots)
        return slice(start, len(self.slots))


class _Live:
    """The live module, called as its container calls it."""

    def __init__(self, module: nn.Module, reason: str, call_module: Callable[..., Tensor]) -> None:
        self._module, self._reason, self._call_module = module, reason, call_module

    def run(self, x: Tensor, emb: Tensor, context: Any, call: Call, weights: Weights) -> Tensor:
        with call.as_host():
            try:
                return self._call_module(self._module, x, emb, context)
            except Exception as error:
                raise HostFailure(error) from None

    def reasons(self, attention_reason: str | None) -> list[str]:
        return [self._reason]


class _Direct:
    """One of our functions with the weights and the spec of one block."""

    def __init__(self, function: Callable[..., Tensor], weights_type: Any, own: slice, spec: Any) -> None:
        self._function, self._weights_type, self._own, self._spec = function, weights_type, own, spec

    def run(self, x: Tensor, emb: Tensor, context: Any, call: Call, weights: Weights) -> Tensor:
        return self._function(x, self._weights_type(*weights[self._own]), self._spec, call.rules)

    def reasons(self, attention_reason: str | None) -> list[str]:
        return []


class _DirectRes(_Direct):
    def run(self, x: Tensor, emb: Tensor, context: Any, call: Call, weights: Weights) -> Tensor:
        return self._function(x, emb, self._weights_type(*weights[self._own]), self._spec, call.rules)


class _DirectSiLU:
    def run(self, x: Tensor, emb: Tensor, context: Any, call: Call, weights: Weights) -> Tensor:
        return sample.silu(x)

    def reasons(self, attention_reason: str | None) -> list[str]:
        return []


class _Part(Protocol):
    """A third of a transformer block, or a whole one at host speed; `context` is that of this depth."""

    def run(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> Tensor: ...

    def reason(self, attention_reason: str | None) -> str | None: ...


class _LivePart:
    def __init__(self, reason: str, call_module: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        self._reason, self._call_module = reason, call_module

    def run(self, x: Tensor, context: Tensor | None, call: Call, weights: Weights) -> Tensor:
        with call.as_host():
            try:
                return self._call_module(x, context)
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

    def run(self, x: Tensor, emb: Tensor, context: Any, call: Call, weights: Weights) -> Tensor:
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


def _call_with_emb(module: nn.Module, x: Tensor, emb: Tensor, context: Any) -> Tensor:
    return module(x, emb)  # type: ignore[no-any-return]


def _call_with_context(module: nn.Module, x: Tensor, emb: Tensor, context: Any) -> Tensor:
    return module(x, context)  # type: ignore[no-any-return]


def _call_plain(module: nn.Module, x: Tensor, emb: Tensor, context: Any) -> Tensor:
    return module(x)  # type: ignore[no-any-return]


def choose(blocks: Iterable[nn.Module | None], names: Family, trust: Trust) -> tuple[list[Step], list[Slot]]:
    """The steps of a container's blocks, and the slots of the weights that the steps read.

    Raises LayoutError if a block is of an unknown class: how to call it, only its container knows.
    """
    slots = _SlotList()
    steps = [_choose_block(block, names, trust, slots) for block in blocks]
    return steps, slots.slots


def _choose_block(block: nn.Module | None, names: Family, trust: Trust, slots: _SlotList) -> Step:
    if block is None:
        raise LayoutError("an empty place among the blocks")
    kind = class_name(type(block))
    if kind == names.transformer:
        return _or_live(block, _call_with_context, lambda: _transformer(block, names, trust, slots))
    if kind == names.res_block:
        return _or_live(block, _call_with_emb, lambda: _res_block(block, names, trust, slots))
    simple = {
        names.downsample: (compvis.read_downsample, sample.convolution),
        names.upsample: (compvis.read_upsample, sample.upsample),
        "torch.nn.modules.conv.Conv2d": (compvis.read_convolution, sample.convolution),
        "torch.nn.modules.activation.SiLU": (compvis.read_silu, None),
    }
    if kind not in simple:
        raise LayoutError(f"unknown block {kind}")
    read, function = simple[kind]
    return _or_live(block, _call_plain, lambda: _simple(read(block, names, trust), function, slots))


def _or_live(block: nn.Module, call_module: Callable[..., Tensor], build: Callable[[], Step]) -> Step:
    try:
        return build()
    except (LayoutError, AttributeError) as error:
        # An attribute that the class promises and the instance lacks: somebody rebuilt the block.
        return _Live(block, str(error), call_module)


def _simple(reading: Reading, function: Callable[..., Tensor] | None, slots: _SlotList) -> Step:
    if function is None:
        return _DirectSiLU()
    return _Direct(function, sample.ConvWeights, slots.add(reading), reading.spec)


def _res_block(block: nn.Module, names: Family, trust: Trust, slots: _SlotList) -> Step:
    reading = compvis.read_res_block(block, names, trust)
    return _DirectRes(res.res_block, res.ResWeights, slots.add(reading), reading.spec)


def _transformer(block: Any, names: Family, trust: Trust, slots: _SlotList) -> Step:
    reading = compvis.read_frame(block, names, trust)
    depths = list(block.transformer_blocks)
    if not depths:
        raise LayoutError("SpatialTransformer without blocks")
    own = slots.add(reading)
    return _DirectTransformer(own, reading.spec, [_parts(each, names, trust, slots) for each in depths])


def _parts(block: Any, names: Family, trust: Trust, slots: _SlotList) -> list[_Part]:
    try:
        demand_clean(demand_type(block, names.transformer_block), trust)
        crossing_first = bool(block.disable_self_attn)
    except (LayoutError, AttributeError) as error:
        return [_LivePart(str(error), lambda x, context: block(x, context=context))]
    return [
        _attention(block, "norm1", "attn1", crossing_first, names, trust, slots),
        _attention(block, "norm2", "attn2", True, names, trust, slots),
        _feed_forward(block, names, trust, slots),
    ]


def _attention(
    block: Any, norm: str, attention: str, with_context: bool, names: Family, trust: Trust, slots: _SlotList
) -> _Part:
    def call_live(x: Tensor, context: Tensor | None) -> Tensor:
        mixed = getattr(block, attention)(getattr(block, norm)(x), context=context if with_context else None)
        return mixed + x  # type: ignore[no-any-return]

    try:
        reading = compvis.read_attention(getattr(block, norm), getattr(block, attention), names, trust)
    except (LayoutError, AttributeError) as error:
        return _LivePart(f"{attention}: {error}", call_live)
    return _DirectAttention(slots.add(reading), reading.spec, with_context, _LivePart("", call_live))


def _feed_forward(block: Any, names: Family, trust: Trust, slots: _SlotList) -> _Part:
    try:
        reading = compvis.read_feed_forward(block.norm3, block.ff, names, trust)
    except (LayoutError, AttributeError) as error:
        return _LivePart(f"ff: {error}", lambda x, context: block.ff(block.norm3(x)) + x)
    return _DirectFeedForward(slots.add(reading), reading.spec)
