"""Which implementations a block's operators take: what decides how it is best compiled.

That is heard when a block runs, once as long as the same choices hold: no look at its arguments tells it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

from torch import Tensor

from lib_accel.blocks.operators import custom
from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator, Tuned
from lib_accel.device import OUT_OF_MEMORY

# The operators that a block calls, in turn, each with the name of what takes it, None for plain torch. Empty
# where plain torch takes all of them.
Winners = tuple[tuple[str, str | None], ...]


def to_leave_whole(winners: Winners) -> tuple[str, ...]:
    """The names of operators that a compiler had better leave whole, sorted."""
    return custom.definable([name for name, taken in winners if taken is not None])


class Heard:
    """What was heard of the blocks of an engine. Calls may come from any thread."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Tuned, dict[Hashable, Winners]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def winners(
        self, key: Hashable, tuned: Tuned | None, call: Callable[[Tuned], Tensor] | None
    ) -> Winners | None:
        """Of blocks of one key; None if that is not known yet.

        call: runs such a block with these choices; None if there is no time for that.
        """
        if tuned is None:
            return ()
        with self._lock:
            known = self._known.setdefault(tuned, {}).get(key)
        if known is not None or call is None:
            return known
        noting = _Noting(tuned)
        try:
            call(noting)
        except OUT_OF_MEMORY:  # the next call may fit
            return None
        with self._lock:
            self._known[tuned][key] = noting.winners
        return noting.winners


class _Noting:
    """operator.Tuned that notes what another answers."""

    def __init__(self, tuned: Tuned) -> None:
        self._tuned = tuned
        self._calls: list[tuple[str, str | None]] = []

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        found = self._tuned.implementation(operator, args)
        self._calls.append((operator.name, None if found is None else found.name))
        return found

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        self._tuned.note_failure(operator, implementation, error)

    @property
    def winners(self) -> Winners:
        is_plain = all(taken is None for _, taken in self._calls)
        return () if is_plain else tuple(self._calls)
