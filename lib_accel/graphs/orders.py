"""Graphs that an engine has made: asked for when it is time, and given up where none can be made."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from lib_accel.device import OUT_OF_MEMORY
from lib_accel.errors import CompileError
from lib_accel.graphs.case import Trace
from lib_accel.graphs.compiler import Graph
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import Job, Workshop

_log = logging.getLogger(__name__)

_OUT_OF_MEMORY_NAMES = tuple(kind.__name__ for kind in OUT_OF_MEMORY)  # in the reasons of a worker
_FAILURES_TO_GIVE_UP = 3  # for the same reason, and nothing was ever compiled: there is no compiler, say


class Orders:
    """Of one engine. Calls may come from any thread."""

    def __init__(
        self,
        workshop: Workshop,
        verdicts: Verdicts,
        is_busy: Callable[[], bool],
        is_measuring: Callable[[], bool],
    ) -> None:
        """`is_busy`: whether somebody is drawing, even if no model is called right now.

        is_measuring: whether it is still to be found out what computes operators. Graphs that leave some of
        them whole wait for that: they might be made in vain.
        """
        self._workshop, self._verdicts = workshop, verdicts
        self._is_busy, self._is_measuring = is_busy, is_measuring
        self._waiting: list[Trace] = []
        self._placed: list[Trace] = []
        self._lock = threading.Lock()  # around both lists
        self._failures: list[str] = []  # the latest, as long as they are alike
        self._has_compiled = False
        self.are_any = False  # since they were cancelled

    @property
    def pending(self) -> int:
        """How many graphs are to be made."""
        return self._workshop.pending(self)

    def place(self, traces: Iterable[Trace]) -> None:
        """Asks for graphs, each once."""
        for trace in traces:
            trace.is_asked = self.are_any = True
            if self._has_given_up:
                self._give_up(trace)
            elif trace.leaves_whole and self._is_measuring():
                with self._lock:
                    self._waiting.append(trace)
            else:
                self._submit(trace)

    def place_what_waited(self) -> None:
        """Asks for what waited for operators to be measured, if that is done."""
        if self._waiting and not self._is_measuring():
            with self._lock:
                traces, self._waiting = self._waiting, []
            self.place(traces)

    def finish(self, timeout_s: float | None, tell: Callable[[int], None] | None) -> bool:
        """Has all graphs made now that were asked for; see Workshop.finish."""
        return self._workshop.finish(self, timeout_s, tell)

    def cancel(self) -> None:
        """Forgets the graphs that are not begun."""
        self.are_any = False
        self._workshop.cancel(self)
        with self._lock:
            traces = self._placed + self._waiting
            self._placed, self._waiting = [], []
        for trace in traces:
            trace.is_asked = trace.is_done

    def clear(self) -> None:
        """As if none had ever failed."""
        self.cancel()
        self._failures = []

    def _submit(self, trace: Trace) -> None:
        with self._lock:
            self._placed.append(trace)
        self._workshop.submit(
            Job(
                self,
                trace.part,
                self._is_busy,
                lambda: self._verdicts.begin_trial(trace.name),
                lambda result: self._made(trace, result),
            )
        )

    def _made(self, trace: Trace, result: Graph | CompileError) -> None:
        self._verdicts.end_trial(trace.name)
        with self._lock:
            self._placed = [each for each in self._placed if each is not trace]
            left = self._placed + self._waiting
        if isinstance(result, Graph):
            self._has_compiled = True
            trace.graph = result
            return
        reason = str(result)
        if any(name in reason for name in _OUT_OF_MEMORY_NAMES) and trace.may_try_again():
            trace.is_asked = False
            return
        trace.fault = reason  # not kept: what is missing may be there next time
        alike = reason.rpartition(": ")[2]
        self._failures = [*self._failures, alike] if alike in self._failures else [alike]
        _log.info("not compiled: %s", reason)
        if self._has_given_up:
            self._workshop.cancel(self)
            for each in left:
                self._give_up(each)

    @property
    def _has_given_up(self) -> bool:
        return not self._has_compiled and len(self._failures) >= _FAILURES_TO_GIVE_UP

    def _give_up(self, trace: Trace) -> None:
        if not trace.is_done:
            trace.fault = f"not tried: {self._failures[-1]}"
