"""Which models have their weights laid in another way than as they were loaded: a measured choice.

While a picture is drawn, the blocks are noted that read such weights. As soon as all those of a model are
timed in both ways (way.Way), their times are added up and the sums are kept. What a model runs follows from
them alone, so that the same machine draws the same picture after a restart, from its first call on. Weights
are laid between pictures, and put back by `undo`. Where nothing is timed, as on a CPU, nothing happens.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from torch import nn

from lib_accel.blocks.operators.operator import Arguments, Operator
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.graphs.proof import DIRECT, Verdict
from lib_accel.graphs.structure import digest
from lib_accel.graphs.verdicts import Verdicts, surroundings
from lib_accel.layouts.reading import COMPILED, is_compiled
from lib_accel.noted import NotedBlock, is_dead
from lib_accel.way import Laid, Piece, Way, modules_of, parameters

AS_LOADED = "torch"  # what the operator as it is goes by
_LEAST_GAIN = 0.03  # share of the time; less is noise on any machine
_NO_MEMORY = "there is no memory to lay its weights anew"

Times = Mapping[str, float]  # milliseconds by AS_LOADED and the way's code


class Measured(Protocol):
    """Who times operators."""

    def verdict(self, operator: Operator, args: Arguments) -> Times | None:
        """Milliseconds by implementation, none where they cannot be had, or None while they are not known.

        Does not read tensors: those that are no weights have no memory.
        """


class Format(NamedTuple):
    """How one model's weights lie, and why."""

    is_laid: bool  # whether in the other way
    reason: str
    ms: Times  # of the blocks that read them, together; empty while it is undecided


def added(times: Iterable[Times], code: str) -> dict[str, float]:
    """The sums, as loaded and by that code. One that a block lacks is missing: it cannot have it."""
    known = list(times)
    names = [name for name in (AS_LOADED, code) if all(name in each for each in known)]
    return {name: math.fsum(each[name] for each in known) for name in names}


def is_worth_it(ms: Times, code: str) -> bool:
    """Whether the weights of a model whose blocks take so long are to lie so."""
    return ms.get(code, math.inf) <= (1 - _LEAST_GAIN) * ms.get(AS_LOADED, 0.0)


class Formats:
    """One way of laying weights in an engine's models, all of which are held weakly."""

    def __init__(self, measured: Measured, verdicts: Verdicts, way: Way) -> None:
        """`verdicts`: where the sums are kept."""
        self._measured, self._verdicts, self.way = measured, verdicts, way
        self._blocks: dict[int, NotedBlock] = {}  # by the id of a weight
        self._laid: WeakKeyDictionary[nn.Module, _LaidFor] = WeakKeyDictionary()
        self._too_large: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # to be laid: the sums' name
        self._found: dict[str, Format] = {}
        self._moves = 0
        self._lock = threading.Lock()

    def note(self, args: Arguments) -> bool:
        """A block is called, with these arguments of the way's question.

        Returns whether to time it, which is said once; see `ask_again`.
        """
        weight = args[self.way.known_by]
        if type(weight) is not nn.Parameter:
            return False
        block = self._blocks.get(id(weight))
        if block is None or block.weight() is not weight:
            block = self._blocks[id(weight)] = NotedBlock(weight)
        return not block.is_settled and block.note(self.way.key(args), args)

    def apply(self, models: Sequence[tuple[str, nn.Module]]) -> bool:
        """Lays the weights of these models as suits them best; not while one of them is being called.

        Returns whether any has moved, with which all that knows its address is void.
        """
        with self._lock:
            before = self._moves
            self._blocks = {
                key: block for key, block in list(self._blocks.items()) if not is_dead(block.weight)
            }
            self._found = {
                name: self._lay(model, pieces) for name, model in models if (pieces := self.way.find(model))
            }
            return self._moves > before

    def ask_again(self) -> None:
        """What waits to be timed was forgotten: calls that are not known are said to be timed once more.

        So was for which models there was no memory.
        """
        self._too_large.clear()
        for block in list(self._blocks.values()):
            block.told.clear()

    def undo(self) -> bool:
        """Puts all weights back that were laid and still lie so. Returns whether any has moved."""
        self.ask_again()
        with self._lock:
            before, self._found = self._moves, {}
            for each in self._laid.values():
                self._moves += each.laid.put_back()
            return self._moves > before

    def report(self) -> dict[str, Format]:
        """By model, as the latest `apply` left them."""
        return self._found

    def _lay(self, model: nn.Module, pieces: Sequence[Piece]) -> Format:
        known = self._laid.get(model)
        if known is not None:
            self._moves += known.laid.mend()
            if ids := known.laid.ids():
                ms = self._kept(known.name)
                if self._is_to_be_laid(model, known.name, ms):  # wherever the host keeps it between pictures
                    are_all = all(id(weight) in ids for weight in parameters(pieces))
                    others = () if are_all or self._why_not(model, pieces) else pieces
                    return self._lay_so(model, known, others, ms)
                self._moves += known.laid.put_back()  # somebody has forgotten what was measured, say
        if reason := self._why_not(model, pieces):
            return Format(reason == self.way.by_others, reason, {})
        weights = parameters(pieces)
        name = _name(self.way, weights)
        if not self._kept(name) and (reason := self._add_up(name, weights)):
            return Format(False, reason, {})
        self._settle(weights)
        ms = self._kept(name)
        if not self._is_to_be_laid(model, name, ms):
            return Format(False, _NO_MEMORY if is_worth_it(ms, self.way.code) else self._compared(ms), ms)
        laid = self.way.laid() if known is None else known.laid
        self._laid[model] = now = _LaidFor(name, laid)
        return self._lay_so(model, now, pieces, ms)

    def _is_to_be_laid(self, model: nn.Module, name: str, ms: Times) -> bool:
        return is_worth_it(ms, self.way.code) and self._too_large.get(model) != name

    def _why_not(self, model: nn.Module, pieces: Sequence[Piece]) -> str | None:
        if any(map(is_compiled, modules_of(model))):  # others' graphs would be made anew
            return f"it is {COMPILED}"
        return self.way.why_not(pieces, {each for known in self._laid.values() for each in known.laid.ids()})

    def _lay_so(self, model: nn.Module, known: _LaidFor, pieces: Sequence[Piece], ms: Times) -> Format:
        before = _places(pieces)
        try:
            self._moves += known.laid.lay(pieces)
        except OUT_OF_MEMORY:  # as it would be at every picture from now on
            known.laid.put_back()
            self._moves += _places(pieces) != before
            self._too_large[model] = known.name
            return Format(False, _NO_MEMORY, ms)
        return Format(True, self._compared(ms), ms)

    def _kept(self, name: str) -> Times:
        """The sums under that name, or none; a file can hold anything."""
        verdict = self._verdicts.get(name)
        ms = {} if verdict is None else verdict.ms
        return {each: ms[each] for each in (AS_LOADED, self.way.code) if type(ms.get(each)) is float}

    def _add_up(self, name: str, weights: Sequence[nn.Parameter]) -> str | None:
        """Keeps the sums of the model's blocks, or says why there are none."""
        blocks = [block for weight in weights if (block := self._blocks.get(id(weight))) is not None]
        for block in blocks:
            block.is_settled = False
        calls = [call for block in blocks for call in block.calls_on(weights[0].device)]
        if not calls:
            return f"undecided: its {self.way.parts} were not called yet"
        times = [self._measured.verdict(self.way.question, call) for call in calls]
        waiting, known = times.count(None), [each for each in times if each]
        if waiting or not known:  # those that can never be timed, for their size, say, are left out
            return f"undecided: {len(known)} of {len(times)} calls of {self.way.parts} are measured"
        self._verdicts.put(name, Verdict(DIRECT, self.way.kept_as, ms=added(known, self.way.code)))
        return None

    def _settle(self, weights: Sequence[nn.Parameter]) -> None:
        for weight in weights:
            if (block := self._blocks.get(id(weight))) is not None:
                block.is_settled, block.calls, block.told = True, {}, set()

    def _compared(self, ms: Times) -> str:
        spoken = zip((AS_LOADED, self.way.code), self.way.spoken, strict=True)
        parts = [f"{ms[name]:.2f} ms {words}" if name in ms else f"never {words}" for name, words in spoken]
        return f"its {self.way.parts} take {', '.join(parts)}"


class _LaidFor(NamedTuple):
    name: str  # under which the sums are kept that spoke for it
    laid: Laid


def _places(pieces: Sequence[Piece]) -> list[int]:
    return [weight.data_ptr() for weight in parameters(pieces)]


def _name(way: Way, weights: Sequence[nn.Parameter]) -> str:
    """The same for all models of these weights on this machine, whatever values they have."""
    structure = [(tuple(weight.shape), str(weight.dtype)) for weight in weights]
    return digest(surroundings(weights[0].device), way.kept_as, structure)
