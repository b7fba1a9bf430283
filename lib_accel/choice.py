"""Which code runs a block: the host's, ours as it stands, or ours compiled. Measured, proved, remembered.

A case is a structure under a condition at sizes that cost alike, with operators that are computed alike
(graphs.case). It runs direct code until its graphs are made (graphs.orders) and a proof on live inputs spoke
for another code (graphs.proof). A case changes its code only in `apply`, which is called between pictures.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.kinds import KINDS, compute
from lib_accel.blocks.operators.operator import Tuned
from lib_accel.blocks.rules import Rules
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.case import TO_BE_PROVED, Attempt, Case, Key, Trace
from lib_accel.graphs.cases import Cases
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.orders import Orders
from lib_accel.graphs.proof import COMPILED, DIRECT, HOST, Side, Verdict, prove
from lib_accel.graphs.structure import condition_of, normalized, sizes_of, structure_of
from lib_accel.graphs.timed import as_launched
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.winners import Heard
from lib_accel.graphs.workshop import Workshop
from lib_accel.report import GraphReport

__all__ = ["MEASURED", "TO_BE_PROVED", "Block", "Choice"]

_log = logging.getLogger(__name__)

# Codes for which graphs are made. "auto" is not among them as long as no device is known where compiled code
# pays: on a CPU it is 0.85 to 1.04 times as fast as direct code, after minutes; no GPU has been measured.
MEASURED = "measured"
_COMPILES = (MEASURED, COMPILED)

_PROOF_SHARE = 0.1  # of a picture's time, which proofs may take


class Block:
    """What a step is to the choice: its kind and spec, and the cases that its calls were found to be."""

    __slots__ = ("cases", "kind", "name", "spec", "version")

    def __init__(self, name: str, spec: Any) -> None:
        self.name, self.kind, self.spec = name, KINDS[name], spec
        self.version = -1
        self.cases: dict[Any, Case | None] = {}


class Choice:
    """The cases of an engine. Calls may come from any thread."""

    def __init__(
        self,
        verdicts: Verdicts,
        workshop: Workshop,
        is_busy: Callable[[], bool] = lambda: False,
        launcher_of: Callable[[torch.device], Launcher | None] = lambda device: None,
    ) -> None:
        """`is_busy`: whether somebody is drawing, even if no model is called right now.

        launcher_of: what replays calls on a device now, if they are replayed.
        """
        self._verdicts, self._workshop, self._launcher_of = verdicts, workshop, launcher_of
        # Whether contests of operators are still to be held; see Orders.
        self.is_measuring: Callable[[], bool] = lambda: False
        self._orders = Orders(workshop, verdicts, is_busy, lambda: self.is_measuring())
        self._heard = Heard()
        self._cases = Cases(verdicts)
        self._lock = threading.Lock()
        self._version = 0
        self._codes = 0
        self._began_at = time.monotonic()
        self._proof_s = 0.0

    @property
    def activity(self) -> Activity:
        """Where the engine says when it calls models."""
        return self._workshop.activity

    @property
    def is_compiling(self) -> bool:
        """Whether graphs are still to be made."""
        return self._orders.pending > 0

    def for_call(self, code: str) -> Choice | None:
        """This, if there is something to choose in a call with the option `code`, or None."""
        if code in _COMPILES:
            return self
        self.rest()
        return None

    def settled(self) -> int | None:
        """A number that changes with the codes that blocks run, or None while a graph waits for its proof.

        No graph is waited for longer than some pictures: its size may never be drawn again.
        """
        if any(case.holds_up for case in self._cases.current):
            return None
        return self._codes

    def rest(self) -> None:
        """Stops asking for graphs, where nobody wants them now."""
        if self._orders.are_any:
            self.cancel()

    # At each block

    def run(
        self,
        block: Block,
        x: Tensor,
        besides: Any,
        weights: Sequence[Any],
        rules: Rules,
        live: Side | None,
        *,
        is_forced: bool,
        may_prove: bool = True,
    ) -> tuple[Tensor, str]:
        """The block's output, and whether that is the host's, direct or compiled.

        live: the host's block, if there is one.
        """
        case = self._case(block, x, besides, weights, rules, is_forced, may_prove)
        if case is not None:
            if (trace := case.traces.get(case.code)) is not None:
                result = self._run_compiled(case, trace, x, besides, weights, rules.tuned)
                if result is not None:
                    return result, COMPILED
            elif case.code == HOST and live is not None:
                return live(), HOST
            if may_prove and case.wants_proof and self._may_prove(is_forced):
                self._prove(case, block, x, besides, weights, rules, live)
        return compute(block.kind, x, besides, weights, block.spec, rules), DIRECT

    def _case(
        self,
        block: Block,
        x: Tensor,
        besides: Any,
        weights: Sequence[Any],
        rules: Rules,
        is_forced: bool,
        may_hear: bool,
    ) -> Case | None:
        if not block.kind.is_compiled:
            return None
        if block.version != self._version:
            block.version, block.cases = self._version, {}
        sizes = (
            None if besides is None else (getattr(besides, "shape", None), getattr(besides, "dtype", None))
        )
        call = (x.shape, x.dtype, x.device, x.is_contiguous(), sizes, rules, is_forced)
        try:
            return block.cases[call]
        except KeyError:
            case = self._meet(block, x, besides, weights, rules, is_forced, may_hear)
            if case is not None or may_hear:
                block.cases[call] = case
            return case

    def _meet(
        self,
        block: Block,
        x: Tensor,
        besides: Any,
        weights: Sequence[Any],
        rules: Rules,
        is_forced: bool,
        may_hear: bool,
    ) -> Case | None:
        """The case of a call; None if there is none, or if it cannot be told now."""
        inputs = normalized(x, besides, weights)
        if inputs is None:
            return None
        sizes, is_launched = sizes_of(inputs), self._launcher_of(x.device) is not None
        structure, condition = (
            structure_of(block.name, block.spec, inputs),
            condition_of(inputs, rules.plain()),
        )
        key = Key(structure, condition, sizes.size_class, is_forced, is_launched)

        def run(tuned: Tuned) -> Tensor:
            return compute(block.kind, x, besides, weights, block.spec, rules._replace(tuned=tuned))

        winners = self._heard.winners(key, rules.tuned, run if may_hear else None)
        if winners is None:
            return None
        with self._lock:
            case = self._cases.meet(key, winners, sizes)
            self._orders.place(case.wanted)
        return case

    def _run_compiled(
        self,
        case: Case,
        trace: Trace,
        x: Tensor,
        besides: Any,
        weights: Sequence[Any],
        tuned: Tuned | None,
    ) -> Tensor | None:
        """The graph's output, or the plain function's if it took other inputs; None if it failed."""
        inputs, graph = normalized(x, besides, weights), trace.graph
        if inputs is None or graph is None:
            return None
        try:
            result, is_taken = graph.run(inputs, tuned)
        except OUT_OF_MEMORY:
            raise  # the engine's to handle: the host's code needs less, and the next call may fit
        except Exception as error:  # of compiled code, in whatever form; the plain function follows
            _log.exception("%s %s failed; it runs direct from now", case.code, case.key.structure)
            self._settle(case, Verdict(DIRECT, f"failed when it ran: {type(error).__name__}: {error}"))
            case.code = DIRECT
            return None
        if not is_taken:
            case.note_miss(trace, inputs)
        return result

    def _may_prove(self, is_forced: bool) -> bool:
        if is_forced:
            return True
        if self.is_compiling:  # what is being compiled would disturb the times
            return False
        return self._proof_s <= _PROOF_SHARE * (time.monotonic() - self._began_at)

    def _prove(
        self,
        case: Case,
        block: Block,
        x: Tensor,
        besides: Any,
        weights: Sequence[Any],
        rules: Rules,
        live: Side | None,
    ) -> None:
        """Finds the verdict of a case; `apply` puts it into effect."""
        inputs = normalized(x, besides, weights)
        if inputs is None:
            return
        began, attempts = time.monotonic(), case.attempts(inputs, rules.tuned)
        sides: dict[str, Side] = {
            DIRECT: lambda: compute(block.kind, x, besides, weights, block.spec, rules),
            **attempts,
        }
        if live is not None:
            sides[HOST] = live
        self._verdicts.begin_trial(case.name)
        verdict = self._proved(case, sides, x.device, list(attempts.values()))
        missed = [attempt.trace for attempt in attempts.values() if not attempt.is_taken]
        if verdict is not None and not missed:
            self._settle(case, verdict)
        else:
            self._verdicts.end_trial(case.name)
        for trace in missed:
            case.note_miss(trace, inputs)
        self._proof_s += time.monotonic() - began

    def _proved(
        self, case: Case, sides: dict[str, Side], device: torch.device, attempts: Sequence[Attempt]
    ) -> Verdict | None:
        """What a proof said; None if there was none."""
        kind, is_forced = case.key.structure.kind, case.key.is_forced
        try:
            launcher = self._launcher_of(device) if case.key.is_launched else None
            with as_launched(launcher, device) as launched:
                return prove(sides, kind, is_forced=is_forced, launched=launched)
        except OUT_OF_MEMORY as error:  # the next picture may fit
            case.is_resting = True
            if not case.may_try_again():
                case.verdict = Verdict(DIRECT, _failed(error))
        except Exception as error:  # of any of the sides; the block's output is computed after this
            _log.exception("no proof of %s", case.key.structure)
            to_blame = [attempt.trace for attempt in attempts if attempt.error is error]
            for trace in to_blame:  # of what is left there may be a proof
                trace.fault = _failed(error)
            if not to_blame:
                case.verdict = Verdict(DIRECT, _failed(error))
        return None

    def _settle(self, case: Case, verdict: Verdict) -> None:
        verdict = case.settle(verdict)
        # With another attention of the host's, or another compiler, it may be otherwise tomorrow.
        if verdict.code == HOST or case.lacks_a_graph:
            self._verdicts.end_trial(case.name)
        else:
            self._verdicts.put(case.name, verdict)

    # Between pictures

    def apply(self) -> None:
        """Puts what was found out into effect; not while a picture is made."""
        with self._lock:
            self._codes += self._cases.apply()
            self._version += 1
            self._orders.place_what_waited()
        self._began_at, self._proof_s = time.monotonic(), 0.0

    def go_on(self) -> None:
        """Asks for the graphs that waited until operators were measured, if they are."""
        with self._lock:
            self._orders.place_what_waited()

    def finish(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Makes all graphs that were asked for, now; see Workshop.finish."""
        return self._orders.finish(timeout_s, tell)

    def cancel(self) -> None:
        """Forgets the graphs that are not begun, until a block asks for them again."""
        with self._lock:
            self._orders.cancel()
            self._version += 1

    def clear(self) -> int:
        """Forgets all verdicts, here and on disk; returns how many there were."""
        with self._lock:
            self._orders.clear()
            self._cases.clear()
            self._version += 1
            self._codes += 1
            return self._verdicts.clear()

    def kept(self) -> int:
        """How many verdicts are kept on disk."""
        return len(self._verdicts)

    def report(self) -> GraphReport:
        """What was compiled, what is to be, and what each case runs and why."""
        made = self._workshop.compiler.counters()
        return GraphReport(
            structures=made.structures,
            graphs=made.graphs,
            recompiles=made.recompiles,
            compile_s=made.compile_s,
            reasons=made.reasons,
            pending=self._orders.pending,
            making=self._workshop.making,
            cases=[case.report() for case in self._cases.current],
        )


def _failed(error: Exception) -> str:
    return f"failed when it was proved: {type(error).__name__}: {error}"
