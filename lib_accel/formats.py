"""Which models have their convolution weights channels last: a measured choice, and what it does to them.

While a picture is drawn, residual blocks are noted. As soon as all those of a model are timed in both formats
(operators.layout), their times are added up and the sums are kept. What a model runs follows from them alone,
so that the same machine draws the same picture after a restart, from its first call on. Weights are turned
between pictures, and put back by `undo`. Where nothing is timed, as on a CPU, nothing happens.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lib_accel.blocks.operators.layout import CHANNELS_LAST, RESIDUAL_LAYOUT
from lib_accel.blocks.operators.operator import Arguments, Operator
from lib_accel.blocks.res import ResWeights
from lib_accel.channels_last import OF_THE_HOST, Turned, convolution_weights, why_not
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.graphs.proof import DIRECT, Verdict
from lib_accel.graphs.structure import digest
from lib_accel.graphs.verdicts import Verdicts, surroundings
from lib_accel.layouts.reading import COMPILED, is_compiled

CHANNELS_FIRST = "torch"  # what the operator as it is goes by
_LEAST_GAIN = 0.03  # share of the time; less is noise on any machine
_MOST_CALLS = 8  # of one block, that differ in size
_CONV_IN = 2 + ResWeights._fields.index("conv_in")  # after x and emb

Times = Mapping[str, float]  # milliseconds by CHANNELS_FIRST and CHANNELS_LAST


class Measured(Protocol):
    """Who times operators."""

    def verdict(self, operator: Operator, args: Arguments) -> Times | None:
        """Milliseconds by implementation, none where they cannot be had, or None while they are not known.

        Does not read tensors: those that are no weights have no memory.
        """


class Format(NamedTuple):
    """How one model's convolution weights lie, and why."""

    is_channels_last: bool
    reason: str
    ms: Times  # of its residual blocks together; empty while it is undecided


def added(times: Iterable[Times]) -> dict[str, float]:
    """The sums by format. One that is missing for a block is missing: that block cannot have it."""
    known = list(times)
    names = [name for name in (CHANNELS_FIRST, CHANNELS_LAST) if all(name in each for each in known)]
    return {name: math.fsum(each[name] for each in known) for name in names}


def is_worth_it(ms: Times) -> bool:
    """Whether a model whose blocks take so long is to be channels last."""
    return ms.get(CHANNELS_LAST, math.inf) <= (1 - _LEAST_GAIN) * ms.get(CHANNELS_FIRST, 0.0)


class Formats:
    """The memory formats of an engine's models, all of which are held weakly."""

    def __init__(self, measured: Measured, verdicts: Verdicts) -> None:
        """`verdicts`: where the sums are kept."""
        self._measured, self._verdicts = measured, verdicts
        self._blocks: dict[int, _Block] = {}  # by the id of a weight
        self._turned: WeakKeyDictionary[nn.Module, _TurnedFor] = WeakKeyDictionary()
        self._found: dict[str, Format] = {}
        self._moves = 0
        self._lock = threading.Lock()

    def note(self, args: Arguments) -> bool:
        """A residual block is called with these arguments of RESIDUAL_LAYOUT.

        Returns whether to time it, which is said once; see `ask_again`.
        """
        weight = args[_CONV_IN]
        if type(weight) is not nn.Parameter:
            return False
        block = self._blocks.get(id(weight))
        if block is None or block.weight() is not weight:
            block = self._blocks[id(weight)] = _Block(weight)
        return not block.is_settled and block.note(args)

    def apply(self, models: Sequence[tuple[str, nn.Module]]) -> bool:
        """Lays the weights of these models as suits them best; not while one of them is being called.

        Returns whether any has moved, with which all that knows its address is void.
        """
        with self._lock:
            before = self._moves
            self._blocks = {
                key: block for key, block in list(self._blocks.items()) if not _is_dead(block.weight)
            }
            self._found = {
                name: self._lay(model, weights)
                for name, model in models
                if (weights := convolution_weights(model))
            }
            return self._moves > before

    def ask_again(self) -> None:
        """What waits to be timed was forgotten: calls that are not known are said to be timed once more."""
        for block in list(self._blocks.values()):
            block.told.clear()

    def undo(self) -> bool:
        """Puts all weights back that were turned and still lie so. Returns whether any has moved."""
        self.ask_again()
        with self._lock:
            before, self._found = self._moves, {}
            for each in self._turned.values():
                self._moves += each.turned.put_back()
            return self._moves > before

    def report(self) -> dict[str, Format]:
        """By model, as the latest `apply` left them."""
        return self._found

    def _lay(self, model: nn.Module, weights: Sequence[nn.Parameter]) -> Format:
        known = self._turned.get(model)
        if known is not None and known.turned.ids():
            ms = self._kept(known.name)
            if is_worth_it(ms):  # wherever the host keeps the model between pictures
                others = () if self._why_not(model, weights) else weights
                return self._turn(known.turned, others, ms)
            self._moves += known.turned.put_back()  # somebody has forgotten what was measured
        if reason := self._why_not(model, weights):
            return Format(reason == OF_THE_HOST, reason, {})
        name = _name(weights)
        if not self._kept(name) and (reason := self._add_up(name, weights)):
            return Format(False, reason, {})
        self._settle(weights)
        ms = self._kept(name)
        if not is_worth_it(ms):
            return Format(False, _compared(ms), ms)
        turned = Turned() if known is None else known.turned
        self._turned[model] = _TurnedFor(name, turned)
        return self._turn(turned, weights, ms)

    def _why_not(self, model: nn.Module, weights: Sequence[nn.Parameter]) -> str | None:
        if any(map(is_compiled, model.modules())):  # others' graphs would be made anew
            return f"it is {COMPILED}"
        return why_not(weights, {each for known in self._turned.values() for each in known.turned.ids()})

    def _turn(self, turned: Turned, weights: Sequence[nn.Parameter], ms: Times) -> Format:
        try:
            self._moves += turned.turn(weights)
        except OUT_OF_MEMORY:
            self._moves += turned.put_back()
            return Format(False, "there is no memory to turn its weights", ms)
        return Format(True, _compared(ms), ms)

    def _kept(self, name: str) -> Times:
        """The sums under that name, or none; a file can hold anything."""
        verdict = self._verdicts.get(name)
        ms = {} if verdict is None else verdict.ms
        return {each: ms[each] for each in (CHANNELS_FIRST, CHANNELS_LAST) if type(ms.get(each)) is float}

    def _add_up(self, name: str, weights: Sequence[nn.Parameter]) -> str | None:
        """Keeps the sums of the model's blocks, or says why there are none."""
        blocks = [block for weight in weights if (block := self._blocks.get(id(weight))) is not None]
        for block in blocks:
            block.is_settled = False
        calls = [call for block in blocks for call in block.calls_on(weights[0].device)]
        if not calls:
            return "undecided: its residual blocks were not called yet"
        times = [self._measured.verdict(RESIDUAL_LAYOUT, call) for call in calls]
        waiting, known = times.count(None), [each for each in times if each]
        if waiting or not known:  # those that can never be timed, for their size, say, are left out
            return f"undecided: {len(known)} of {len(times)} calls of residual blocks are measured"
        self._verdicts.put(name, Verdict(DIRECT, "memory format", ms=added(known)))
        return None

    def _settle(self, weights: Sequence[nn.Parameter]) -> None:
        for weight in weights:
            if (block := self._blocks.get(id(weight))) is not None:
                block.is_settled, block.calls, block.told = True, {}, set()


class _TurnedFor(NamedTuple):
    name: str  # under which the sums are kept that spoke for it
    turned: Turned


class _Block:
    """The calls of one residual block, known by the weight of its first convolution."""

    __slots__ = ("calls", "is_settled", "told", "weight")

    def __init__(self, weight: Tensor) -> None:
        self.weight = weakref.ref(weight)
        self.calls: dict[Any, list[Any]] = {}
        self.told: set[Any] = set()  # which of the calls are to be timed by somebody who knows
        self.is_settled = False  # whether the format of its model is decided

    def note(self, args: Arguments) -> bool:
        """Remembers a call of another size, without what it holds; whether it is told for the first time."""
        x, emb, *_, matmul, norm = args
        call = x.shape, x.dtype, x.device, None if emb is None else (emb.shape, emb.dtype), matmul, norm
        if call in self.told or (call not in self.calls and len(self.calls) >= _MOST_CALLS):
            return False
        self.told.add(call)
        if call not in self.calls:
            self.calls[call] = list(map(_without_memory, args))
        return True

    def calls_on(self, device: torch.device) -> list[Arguments]:
        """The arguments of those on a device, with an x and an emb that have no memory."""
        self.calls = {key: args for key, args in list(self.calls.items()) if not any(map(_is_dead, args))}
        return [tuple(map(_alive, args)) for args in self.calls.values() if args[0].device == device]


class _Shell(Tensor):
    """What a tensor says of itself, without its memory; whoever reads it gets an error."""

    @staticmethod
    def __new__(cls, like: Tensor) -> _Shell:
        made: _Shell = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(f"{func} of a tensor without memory")


def _without_memory(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return weakref.ref(value)
    return _Shell(value) if isinstance(value, Tensor) else value


def _is_dead(value: Any) -> bool:
    return isinstance(value, weakref.ref) and value() is None


def _alive(value: Any) -> Any:
    return value() if isinstance(value, weakref.ref) else value


def _name(weights: Sequence[nn.Parameter]) -> str:
    """The same for all models of these weights on this machine, whatever values they have."""
    structure = [(tuple(weight.shape), str(weight.dtype)) for weight in weights]
    return digest(surroundings(weights[0].device), "memory format", structure)


def _compared(ms: Times) -> str:
    parts = [f"{ms[name]:.2f} ms {spoken}" if name in ms else f"never {spoken}" for name, spoken in _SPOKEN]
    return f"its residual blocks take {', '.join(parts)}"


_SPOKEN = ((CHANNELS_FIRST, "channels first"), (CHANNELS_LAST, "channels last"))
