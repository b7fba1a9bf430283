"""Which code runs a block: the host's, ours as it stands, or ours compiled. Measured, proved, remembered.

A case is a structure under a condition at sizes that cost alike. It runs direct code until its graph is made
(graphs.workshop) and a proof on live inputs spoke for another code (graphs.proof). A case changes its code
only in `apply`, which is called between pictures.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_accel.blocks.kinds import KINDS, compute
from lib_accel.blocks.rules import Rules
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.errors import CompileError
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.compiler import Graph
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.proof import COMPILED, DIRECT, HOST, Side, Verdict, prove
from lib_accel.graphs.structure import (
    Condition,
    Inputs,
    Sizes,
    Structure,
    condition_of,
    digest,
    normalized,
    sizes_of,
    structure_of,
)
from lib_accel.graphs.timed import as_launched
from lib_accel.graphs.verdicts import Verdicts, surroundings
from lib_accel.graphs.worker import Part
from lib_accel.graphs.workshop import Job, Workshop
from lib_accel.report import CaseReport, GraphReport

_log = logging.getLogger(__name__)

# Codes for which graphs are made. "auto" is not among them as long as no device is known where compiled code
# pays: on a CPU it is 0.85 to 1.04 times as fast as direct code, after minutes; no GPU has been measured.
MEASURED = "measured"
_COMPILES = (MEASURED, COMPILED)

TO_BE_PROVED = "to be proved"  # the reason of a case whose graph is made

_PROOF_SHARE = 0.1  # of a picture's time, which proofs may take
_MOST_MISSES = 2  # of a case, until its graph is given up
_MOST_TRIES = 3  # of what failed for lack of memory, say, and may do next time
_OUT_OF_MEMORY_NAMES = tuple(kind.__name__ for kind in OUT_OF_MEMORY)  # in the reasons of a worker
_FAILURES_TO_GIVE_UP = 3  # for the same reason, and nothing was ever compiled: there is no compiler, say


class Block:
    """What a step is to the choice: its kind and spec, and the cases that its calls were found to be."""

    __slots__ = ("cases", "kind", "name", "spec", "version")

    def __init__(self, name: str, spec: Any) -> None:
        self.name, self.kind, self.spec = name, KINDS[name], spec
        self.version = -1
        self.cases: dict[Any, _Case | None] = {}


class _Key(NamedTuple):
    structure: Structure
    condition: Condition
    size_class: str
    is_forced: bool
    is_launched: bool  # whether it is timed as a recording


class _Case:
    """What is known of one case, and the code that it runs."""

    __slots__ = (
        "code",
        "graph",
        "is_asked",
        "is_resting",
        "key",
        "misses",
        "name",
        "sizes",
        "tries",
        "verdict",
    )

    def __init__(self, key: _Key, sizes: Sizes, name: str, verdict: Verdict | None) -> None:
        self.key, self.sizes, self.name, self.verdict = key, sizes, name, verdict
        self.code = DIRECT
        self.graph: Graph | None = None
        self.is_asked = False  # whether a graph was asked for
        self.is_resting = False  # its proof failed in this picture
        self.misses = 0
        self.tries = 0  # that failed in passing

    @property
    def wants_graph(self) -> bool:
        return not self.is_asked and (self.verdict is None or self.verdict.code == COMPILED)

    @property
    def wants_proof(self) -> bool:
        return self.graph is not None and self.verdict is None and not self.is_resting

    def apply(self) -> None:
        """Takes the verdict's code, if it can be run."""
        code = DIRECT if self.verdict is None else self.verdict.code
        self.code = DIRECT if code == COMPILED and self.graph is None else code
        self.is_resting = False


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
        self._verdicts, self._workshop, self._is_busy = verdicts, workshop, is_busy
        self._launcher_of = launcher_of
        self._cases: dict[_Key, _Case] = {}
        self._lock = threading.Lock()
        self._version = 0
        self._codes = 0
        self._surroundings: dict[str, str] = {}
        self._began_at = time.monotonic()
        self._proof_s = 0.0
        self._failures: list[str] = []  # the latest, as long as they are alike
        self._has_compiled = False
        self._is_asking = False

    @property
    def activity(self) -> Activity:
        """Where the engine says when it calls models."""
        return self._workshop.activity

    @property
    def is_compiling(self) -> bool:
        """Whether graphs are still to be made."""
        return self._workshop.pending(self) > 0

    def for_call(self, code: str) -> Choice | None:
        """This, if there is something to choose in a call with the option `code`, or None."""
        if code in _COMPILES:
            return self
        self.rest()
        return None

    def settled(self) -> int | None:
        """A number that changes with the codes that blocks run, or None while a graph waits for its proof."""
        if any(case.wants_proof for case in list(self._cases.values())):
            return None
        return self._codes

    def rest(self) -> None:
        """Stops asking for graphs, where nobody wants them now."""
        if self._is_asking:
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
        """The block's output and the code that computed it; `live` is the host's block, if there is one."""
        case = self._case(block, x, besides, weights, rules, is_forced)
        if case is not None:
            if case.code == COMPILED:
                result = self._run_compiled(case, x, besides, weights)
                if result is not None:
                    return result, COMPILED
            elif case.code == HOST and live is not None:
                return live(), HOST
            if may_prove and case.wants_proof and self._may_prove(is_forced):
                self._prove(case, block, x, besides, weights, rules, live)
        return compute(block.kind, x, besides, weights, block.spec, rules), DIRECT

    def _case(
        self, block: Block, x: Tensor, besides: Any, weights: Sequence[Any], rules: Rules, is_forced: bool
    ) -> _Case | None:
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
            case = block.cases[call] = self._meet(block, x, besides, weights, rules, is_forced)
            return case

    def _meet(
        self, block: Block, x: Tensor, besides: Any, weights: Sequence[Any], rules: Rules, is_forced: bool
    ) -> _Case | None:
        inputs = normalized(x, besides, weights)
        if inputs is None:
            return None
        sizes = sizes_of(inputs)
        structure = structure_of(block.name, block.spec, inputs)
        is_launched = self._launcher_of(x.device) is not None
        condition = condition_of(inputs, rules.plain())  # a compiler joins plain torch by itself
        key = _Key(structure, condition, sizes.size_class, is_forced, is_launched)
        with self._lock:
            case = self._cases.get(key)
            if case is None:
                name = digest(self._surroundings_of(x.device), *key)
                case = self._cases[key] = _Case(key, sizes, name, self._verdicts.get(name))
                if case.verdict is not None and case.verdict.code != COMPILED:
                    case.apply()
            if case.wants_graph:
                case.is_asked = True
                self._ask_for_graph(case)
        return case

    def _surroundings_of(self, device: torch.device) -> str:
        name = str(device)
        if name not in self._surroundings:
            self._surroundings[name] = surroundings(device)
        return self._surroundings[name]

    def _ask_for_graph(self, case: _Case) -> None:
        if self._has_given_up:
            case.verdict = Verdict(DIRECT, f"not tried: {self._failures[-1]}")
            return
        part = Part(case.key.structure, case.key.condition, case.sizes)
        self._is_asking = True
        self._workshop.submit(
            Job(
                self,
                part,
                self._is_busy,
                lambda: self._verdicts.begin_trial(case.name),
                lambda result: self._made(case, result),
            )
        )

    def _made(self, case: _Case, result: Graph | CompileError) -> None:
        self._verdicts.end_trial(case.name)
        if isinstance(result, CompileError):
            reason = str(result)
            if any(name in reason for name in _OUT_OF_MEMORY_NAMES) and self._may_try_again(case):
                case.is_asked = False
                return
            case.verdict = Verdict(DIRECT, reason)  # not kept: what is missing may be there next time
            alike = reason.rpartition(": ")[2]
            self._failures = [*self._failures, alike] if alike in self._failures else [alike]
            _log.info("not compiled: %s", reason)
            if self._has_given_up:
                self._give_up()
        else:
            self._has_compiled = True
            case.graph = result

    @property
    def _has_given_up(self) -> bool:
        return not self._has_compiled and len(self._failures) >= _FAILURES_TO_GIVE_UP

    def _may_try_again(self, case: _Case) -> bool:
        case.tries += 1
        return case.tries < _MOST_TRIES

    def _give_up(self) -> None:
        self._workshop.cancel(self)
        for case in list(self._cases.values()):
            if case.verdict is None and case.graph is None:
                case.verdict = Verdict(DIRECT, f"not tried: {self._failures[-1]}")

    def _run_compiled(self, case: _Case, x: Tensor, besides: Any, weights: Sequence[Any]) -> Tensor | None:
        """The graph's output, or the plain function's if it took other inputs; None if it failed."""
        inputs, graph = normalized(x, besides, weights), case.graph
        if inputs is None or graph is None:
            return None
        try:
            result, is_taken = graph.run(inputs)
        except OUT_OF_MEMORY:
            raise  # the engine's to handle: the host's code needs less, and the next call may fit
        except Exception as error:  # of compiled code, in whatever form; the plain function follows
            _log.exception("compiled %s failed; it runs direct from now", case.key.structure)
            self._settle(case, Verdict(DIRECT, f"failed when it ran: {type(error).__name__}: {error}"))
            case.code = DIRECT
            return None
        if not is_taken:
            self._note_miss(case, inputs)
        return result

    def _note_miss(self, case: _Case, inputs: Inputs) -> None:
        """Has a graph made for these inputs before the next picture, unless that was tried before."""
        case.misses += 1
        case.code, case.graph, case.sizes = DIRECT, None, sizes_of(inputs)
        case.is_asked = case.misses > _MOST_MISSES
        if case.is_asked:
            case.verdict = Verdict(DIRECT, "the graph does not take the block's inputs")

    def _may_prove(self, is_forced: bool) -> bool:
        if is_forced:
            return True
        if self.is_compiling:  # what is being compiled would disturb the times
            return False
        return self._proof_s <= _PROOF_SHARE * (time.monotonic() - self._began_at)

    def _prove(
        self,
        case: _Case,
        block: Block,
        x: Tensor,
        besides: Any,
        weights: Sequence[Any],
        rules: Rules,
        live: Side | None,
    ) -> None:
        """Finds the verdict of a case; `apply` puts it into effect."""
        inputs, graph = normalized(x, besides, weights), case.graph
        if inputs is None or graph is None:
            return
        began, is_taken = time.monotonic(), []

        def compiled() -> Tensor:
            result, took = graph.run(inputs)
            is_taken.append(took)
            return result

        sides: dict[str, Callable[[], Tensor]] = {
            DIRECT: lambda: compute(block.kind, x, besides, weights, block.spec, rules),
            COMPILED: compiled,
        }
        if live is not None:
            sides[HOST] = live
        self._verdicts.begin_trial(case.name)
        verdict = None
        try:
            launcher = self._launcher_of(x.device) if case.key.is_launched else None
            with as_launched(launcher, x.device) as launched:
                verdict = prove(sides, block.name, is_forced=case.key.is_forced, launched=launched)
        except OUT_OF_MEMORY as error:  # the next picture may fit
            case.is_resting = True
            if not self._may_try_again(case):
                case.verdict = Verdict(DIRECT, f"failed when it was proved: {type(error).__name__}: {error}")
        except Exception as error:  # of any of the three; the block's output is computed after this
            _log.exception("no proof of %s", case.key.structure)
            case.verdict = Verdict(DIRECT, f"failed when it was proved: {type(error).__name__}: {error}")
        if verdict is not None and all(is_taken):
            self._settle(case, verdict)
        else:
            self._verdicts.end_trial(case.name)
        if not all(is_taken):
            self._note_miss(case, inputs)
        self._proof_s += time.monotonic() - began

    def _settle(self, case: _Case, verdict: Verdict) -> None:
        case.verdict = verdict
        if verdict.code == HOST:  # with another attention of the host's it may be otherwise tomorrow
            self._verdicts.end_trial(case.name)
        else:
            self._verdicts.put(case.name, verdict)

    # Between pictures

    def apply(self) -> None:
        """Puts what was found out into effect; not while a picture is made."""
        with self._lock:
            before = [(case.code, case.graph) for case in self._cases.values()]
            for case in self._cases.values():
                case.apply()
            self._codes += before != [(case.code, case.graph) for case in self._cases.values()]
            self._version += 1
        self._began_at, self._proof_s = time.monotonic(), 0.0

    def finish(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Makes all graphs that were asked for, now; see Workshop.finish."""
        return self._workshop.finish(self, timeout_s, tell)

    def cancel(self) -> None:
        """Forgets the graphs that are not begun, until a block asks for them again."""
        self._is_asking = False
        self._workshop.cancel(self)
        with self._lock:
            for case in self._cases.values():
                case.is_asked = case.graph is not None
            self._version += 1

    def clear(self) -> int:
        """Forgets all verdicts, here and on disk; returns how many there were."""
        self.cancel()
        with self._lock:
            self._cases.clear()
            self._version += 1
            self._codes += 1
            self._failures = []
            return self._verdicts.clear()

    def kept(self) -> int:
        """How many verdicts are kept on disk."""
        return len(self._verdicts)

    def report(self) -> GraphReport:
        """What was compiled, what is to be, and what each case runs and why."""
        made = self._workshop.compiler.counters()
        with self._lock:
            cases = list(self._cases.values())
        return GraphReport(
            structures=made.structures,
            graphs=made.graphs,
            recompiles=made.recompiles,
            compile_s=made.compile_s,
            reasons=made.reasons,
            pending=self._workshop.pending(self),
            making=self._workshop.making,
            cases=[_reported(case) for case in cases],
        )


def _reported(case: _Case) -> CaseReport:
    verdict = case.verdict
    if verdict is None:
        reason = TO_BE_PROVED if case.graph is not None else "to be compiled"
        verdict = Verdict(DIRECT, reason)
    difference = verdict.difference
    return CaseReport(
        block=str(case.key.structure),
        size="x".join(map(str, case.sizes.x)),
        dtype=str(case.key.condition.dtype).removeprefix("torch."),
        device=case.key.condition.device,
        code=case.code,
        next_code=verdict.code,
        reason=verdict.reason,
        difference=difference if difference is None or math.isfinite(difference) else None,  # as JSON has it
        tolerance=verdict.tolerance,
        ms=dict(verdict.ms),
    )
