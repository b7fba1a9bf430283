"""The choices that hold for a device from one picture to the next, as operators ask for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.graphs.structure import digest
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.signature import signature

_log = logging.getLogger(__name__)

_MOST_SIGNATURES = 20_000  # that are remembered: some thousand pictures of different sizes


class Met(NamedTuple):
    """A call as it was met: what may compute it, and under which name its verdict is kept."""

    name: str
    others: Mapping[str, Implementation]
    shipped: str | None = None  # the code to take as long as nothing is known of it here


class _Answer(NamedTuple):
    """What was answered, and under which name its verdict is kept."""

    name: str
    implementation: Implementation


class Choices:
    """operator.Tuned of one moment. It never changes, but for what fails, which is plain torch from then on.

    Equal to itself only. It prints itself as its choices do in every process.
    """

    def __init__(
        self,
        winners: Mapping[str, str],
        meet: Callable[[Operator, Arguments], Met | None],
        fail: Callable[[str, str], None],
        origin: object = None,
    ) -> None:
        """`winners`: codes of implementations by the name of their verdict; what is missing is plain torch.

        meet: says what a call is, and may wish for its contest; None if nothing else than plain torch takes
        its arguments. fail: hears the name of a verdict and why it is none. origin: what decides which codes
        calls are met with (Met.shipped), of a kind that prints itself wholly; None if there are none.
        """
        self.shipped: dict[str, str] = {}  # codes that were met with, by the name of the verdict
        self.winners = dict(winners)
        self._meet, self._fail = meet, fail
        self._known: dict[Hashable, Implementation | None] = {}
        self._answers: dict[int, _Answer] = {}  # by identity: a failure says which it was
        self._failed: set[str] = set()
        self._lock = threading.Lock()
        self._digest = digest(*sorted(self.winners.items()), *([] if origin is None else [origin]))

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        """The winner for these arguments, or None for plain torch: a look-up, but for the first time."""
        key = signature(operator.name, args)
        try:
            return self._known[key]
        except KeyError:
            return self._first(key, operator, args)

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        """Calls like the one that failed are plain torch from now on."""
        with self._lock:
            answer = self._answers.get(id(implementation))
            if answer is None or answer.name in self._failed:
                return
            name = answer.name
            self._failed.add(name)
            self._known.clear()
        _log.error(
            "%s by %r failed; plain torch from now on", operator.name, implementation.name, exc_info=error
        )
        self._fail(name, f"{implementation.name} failed when it ran: {type(error).__name__}: {error}")

    def code(self, name: str) -> str:
        """That of the implementation that is taken where a verdict of this name is, TORCH for plain torch."""
        return TORCH if name in self._failed else self.winners.get(name) or self.shipped.get(name, TORCH)

    def forget(self) -> None:
        """Meets all calls anew, with the same choices."""
        with self._lock:
            self._known.clear()
            self._answers.clear()

    def __repr__(self) -> str:
        return f"Choices({self._digest})"

    def _first(self, key: Hashable, operator: Operator, args: Arguments) -> Implementation | None:
        met = self._meet(operator, args)
        with self._lock:
            if len(self._known) >= _MOST_SIGNATURES:
                self._known.clear()
                self._answers.clear()
            found = self._known[key] = None if met is None else self._answer(met)
        return found

    def _answer(self, met: Met) -> Implementation | None:
        if met.shipped in met.others and met.name not in self.winners:
            self.shipped.setdefault(met.name, str(met.shipped))
        winner = met.others.get(self.code(met.name))
        if winner is None:
            return None
        winner = Implementation(*winner)  # an object of its own, which nobody else is answered
        self._answers[id(winner)] = _Answer(met.name, winner)
        return winner
