"""What is known of blocks of one structure at sizes that cost alike: how they are compiled, what they run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from lib_accel.blocks.operators.operator import Tuned
from lib_accel.graphs.compiler import Graph
from lib_accel.graphs.proof import DIRECT, Verdict
from lib_accel.graphs.structure import Condition, Inputs, Sizes, Structure, sizes_of
from lib_accel.graphs.worker import Part
from lib_accel.report import CaseReport

TO_BE_PROVED = "to be proved"  # the reason of a case whose graphs are made

_MOST_MISSES = 2  # of a graph, until it is given up
_LONGEST_WAIT = 8  # pictures, that are not replayed for the sake of a proof
_MOST_TRIES = 3  # of what failed for lack of memory, say, and may do next time


class Key(NamedTuple):
    """What blocks have in common that run the same code, as long as their operators take the same."""

    structure: Structure
    condition: Condition  # in plain torch
    size_class: str
    is_forced: bool
    is_launched: bool  # whether it is timed as a recording


class Tries:
    """Counts what failed in passing."""

    __slots__ = ("tries",)

    def __init__(self) -> None:
        self.tries = 0

    def may_try_again(self) -> bool:
        """Whether it may be tried once more, after one more failure."""
        self.tries += 1
        return self.tries < _MOST_TRIES


class Trace(Tries):
    """One way to compile blocks, and how far that is."""

    __slots__ = ("condition", "fault", "graph", "is_asked", "misses", "name", "sizes", "structure")

    def __init__(
        self, name: str, structure: Structure, condition: Condition, sizes: Sizes, fault: str | None
    ) -> None:
        """`name`: under which it is known that the process ended when it was made."""
        super().__init__()
        self.name, self.structure, self.condition, self.sizes = name, structure, condition, sizes
        self.graph: Graph | None = None
        self.is_asked = False  # whether a graph was asked for
        self.fault = fault  # why there is no graph, nor will be
        self.misses = 0

    @property
    def part(self) -> Part:
        """What is to be made."""
        return Part(self.structure, self.condition, self.sizes)

    @property
    def leaves_whole(self) -> bool:
        """Whether some operators stay as they are."""
        return self.condition.rules.tuned is not None

    @property
    def is_done(self) -> bool:
        """Whether there is a graph, or never will be."""
        return self.graph is not None or self.fault is not None

    def note_miss(self, inputs: Inputs) -> None:
        """Has a graph made for these inputs before the next picture, unless that was tried before."""
        self.misses += 1
        self.graph, self.sizes = None, sizes_of(inputs)
        self.is_asked = self.misses > _MOST_MISSES
        if self.is_asked:
            self.fault = "the graph does not take the block's inputs"


class Case(Tries):
    """Blocks of a key whose operators take the same, and the code that they run."""

    __slots__ = ("code", "is_resting", "key", "lacks", "name", "sizes", "traces", "verdict", "waited")

    def __init__(
        self,
        key: Key,
        name: str,
        sizes: Sizes,
        traces: Mapping[str, Trace],
        verdict: Verdict | None,
        lacks: str | None,
    ) -> None:
        """`traces` by code, at least one; `lacks`: why there is not one more."""
        super().__init__()
        self.key, self.name, self.sizes = key, name, sizes
        self.traces, self.verdict, self.lacks = traces, verdict, lacks
        self.code = DIRECT
        self.is_resting = False  # its proof failed in this picture
        self.waited = 0  # pictures, for its proof

    @property
    def found(self) -> Verdict | None:
        """What was found out: by a proof, or as there is nothing to be proved."""
        verdict = self.verdict
        if verdict is None:
            faults = [trace.fault for trace in self.traces.values()]
            told = [fault for fault in faults if fault is not None]
            return Verdict(DIRECT, "; ".join(told)) if len(told) == len(faults) else None
        trace = self.traces.get(verdict.code)
        return verdict if trace is None or trace.fault is None else Verdict(DIRECT, trace.fault)

    @property
    def wanted(self) -> list[Trace]:
        """What no graph was asked for yet that the case could run."""
        return [
            trace
            for code, trace in self.traces.items()
            if not (trace.is_asked or trace.is_done) and (self.verdict is None or self.verdict.code == code)
        ]

    @property
    def wants_proof(self) -> bool:
        return self._may_be_proved and not self.is_resting

    @property
    def holds_up(self) -> bool:
        """Whether calls are not replayed so that it is proved: what was drawn once may never be again."""
        return self.wants_proof and self.waited <= _LONGEST_WAIT

    @property
    def _may_be_proved(self) -> bool:
        return self.found is None and all(trace.is_done for trace in self.traces.values())

    @property
    def graph(self) -> Graph | None:
        """That it runs, if any."""
        trace = self.traces.get(self.code)
        return None if trace is None else trace.graph

    @property
    def lacks_a_graph(self) -> bool:
        """Whether one could not be made that may be made another time."""
        return any(trace.fault is not None for trace in self.traces.values())

    def settle(self, verdict: Verdict) -> Verdict:
        """Takes the verdict, which is given back with the reasons why a code was not among the rivals."""
        faults = [self.lacks, *[trace.fault for trace in self.traces.values()]]
        self.verdict = replace(verdict, reason="; ".join([verdict.reason, *filter(None, faults)]))
        return self.verdict

    def apply(self) -> None:
        """Takes the code that was found, if it can be run."""
        found = self.found
        code = DIRECT if found is None else found.code
        trace = self.traces.get(code)
        self.code = DIRECT if trace is not None and trace.graph is None else code
        self.is_resting = False
        self.waited += self._may_be_proved

    def note_miss(self, trace: Trace, inputs: Inputs) -> None:
        """The graph did not take these inputs."""
        trace.note_miss(inputs)
        self.code, self.sizes = DIRECT, trace.sizes

    def attempts(self, inputs: Inputs, tuned: Tuned | None) -> dict[str, Attempt]:
        """The sides of a proof that are compiled, by code."""
        return {
            code: Attempt(trace, trace.graph, inputs, tuned)
            for code, trace in self.traces.items()
            if trace.graph is not None and trace.fault is None
        }

    def report(self) -> CaseReport:
        """What it runs, and why."""
        verdict = self.found
        if verdict is None:
            verdict = Verdict(DIRECT, TO_BE_PROVED if self._may_be_proved else "to be compiled")
        difference = verdict.difference
        return CaseReport(
            block=str(self.key.structure),
            size="x".join(map(str, self.sizes.x)),
            dtype=str(self.key.condition.dtype).removeprefix("torch."),
            device=self.key.condition.device,
            code=self.code,
            next_code=verdict.code,
            reason=verdict.reason,
            difference=difference
            if difference is None or math.isfinite(difference)
            else None,  # as JSON has it
            tolerance=verdict.tolerance,
            ms=dict(verdict.ms),
        )


class Attempt:
    """A graph as a side of a proof."""

    def __init__(self, trace: Trace, graph: Graph, inputs: Inputs, tuned: Tuned | None) -> None:
        self.trace, self.is_taken = trace, True
        self.error: Exception | None = None  # the latest
        self._graph, self._inputs, self._tuned = graph, inputs, tuned

    def __call__(self) -> Tensor:
        try:
            result, is_taken = self._graph.run(self._inputs, self._tuned)
        except Exception as error:
            self.error = error
            raise
        self.is_taken = self.is_taken and is_taken
        return result
