"""All cases of an engine: which there are, how each is compiled, and under which names they are kept."""

from __future__ import annotations

import threading
from typing import Any

import torch

from lib_accel.blocks.operators import custom
from lib_accel.blocks.operators.whole import Whole
from lib_accel.graphs.case import Case, Key, Trace
from lib_accel.graphs.proof import COMPILED, COMPILED_CODES, WITH_KERNELS, Verdict
from lib_accel.graphs.structure import Sizes, digest
from lib_accel.graphs.verdicts import Verdicts, surroundings
from lib_accel.graphs.winners import Winners, to_leave_whole


class Cases:
    """Calls may come from any thread."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._cases: dict[tuple[Key, Winners], Case] = {}
        self._current: dict[Key, Case] = {}  # the latest that was met
        self._traces: dict[tuple[Key, tuple[str, ...]], Trace] = {}  # by the operators that they leave whole
        self._surroundings: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def current(self) -> list[Case]:
        """One for each key: that of the implementations that operators took last."""
        return list(self._current.values())

    def meet(self, key: Key, winners: Winners, sizes: Sizes) -> Case:
        """The case of these, which is the current one now."""
        with self._lock:
            case = self._cases.get((key, winners))
            if case is None:
                case = self._cases[key, winners] = self._new(key, winners, sizes)
            self._current[key] = case
        return case

    def apply(self) -> bool:
        """Puts what was found out into effect; whether that changes anything."""
        with self._lock:
            cases = list(self._cases.values())
            before = [(case.code, case.graph) for case in cases]
            for case in cases:
                case.apply()
            return before != [(case.code, case.graph) for case in cases]

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            for known in (self._cases, self._current, self._traces):
                known.clear()

    def _new(self, key: Key, winners: Winners, sizes: Sizes) -> Case:
        name, verdict = self._known(key, winners)
        traces, lacks = {COMPILED: self._trace(key, (), sizes)}, None
        names = to_leave_whole(winners)
        # Who asks for compiled code has that of plain torch, unless the other was proved to be faster.
        if names and (not key.is_forced or (verdict is not None and verdict.code == WITH_KERNELS)):
            lacks = custom.why_not()
            if lacks is None:
                traces[WITH_KERNELS] = self._trace(key, names, sizes)
        if verdict is not None and verdict.code in COMPILED_CODES and verdict.code not in traces:
            verdict = None
        case = Case(key, name, sizes, traces, verdict, lacks)
        if verdict is not None and verdict.code not in traces:
            case.apply()
        return case

    def _known(self, key: Key, winners: Winners) -> tuple[str, Verdict | None]:
        """The name of a case, and what is kept of it."""
        name = self._name(key, winners)
        if key.is_forced and winners:
            free = self._verdicts.get(self._name(key._replace(is_forced=False), winners))
            if free is not None and free.code == WITH_KERNELS:
                return name, free
        return name, self._verdicts.get(name)

    def _trace(self, key: Key, names: tuple[str, ...], sizes: Sizes) -> Trace:
        if (key, names) not in self._traces:
            condition, name = key.condition, self._name(key, names)
            if names:
                condition = condition._replace(rules=condition.rules._replace(tuned=Whole(names)))
            ended = self._verdicts.get(name, codes=())  # of its verdict, if there is one, nothing is asked
            fault = None if ended is None else ended.reason
            self._traces[key, names] = Trace(name, key.structure, condition, sizes, fault)
        return self._traces[key, names]

    def _name(self, key: Key, besides: tuple[Any, ...]) -> str:
        device = key.condition.device
        if device not in self._surroundings:
            self._surroundings[device] = surroundings(torch.device(device))
        return digest(self._surroundings[device], *key, *([besides] if besides else []))
