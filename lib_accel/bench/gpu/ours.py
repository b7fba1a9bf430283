"""Our side in the suite of GPUs: an engine around a stage's models, and out of the way in stock's turn."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.bench.gpu.host import GpuHost
from lib_accel.bench.gpu.stage import Stage
from lib_accel.bench.graphs_choice import Backends, own_choice
from lib_accel.channels_last import convolution_weights, is_first
from lib_accel.engine import Engine
from lib_accel.graphs.cuda_graph import launcher_of_this_process
from lib_accel.graphs.launch import Launches
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.recorder import Recorder
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.layouts import ENTRIES
from lib_accel.options import Options
from lib_accel.patching import is_ours, junction
from lib_accel.report import TuningReport
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.tuner import Tuner

# Of which one asks for compiled graphs, the next proves them, and the last runs what was proved.
_FEWEST_PICTURES = {"auto": 1, "direct": 1, "compiled": 3}
# One asks what operators are to be measured, the next asks it again with weights in another format, if they
# are to have that, and another one shows that nothing more is asked.
_MOST_PICTURES = 6
_CALLS = 4  # of a picture: the first binds, the second is recorded, the others replay


class Spent(NamedTuple):
    """Seconds until a side runs as it will: what compiling and measuring took of them, and the rest."""

    compile_s: float
    warmup_s: float
    measure_s: float = 0.0  # contests of operators


class Ours:
    """The models with our engine in front of their classes. One at a time in a process."""

    settle = 1

    def __init__(self, stage: Stage, options: Options, backends: Backends) -> None:
        self._stage, self._code = stage, options.code
        self.passes_dispatcher = options.code != "compiled"
        # Whoever tunes may turn weights, and stock is to find its own as they were.
        self.own_mib = _own_convolutions(stage.root) / 2**20 if options.code == "auto" else 0.0
        host, choice = GpuHost(options, stage.root, stage.networks), own_choice(backends)
        tuner = None
        if options.code != "auto":  # asks what that code alone is worth
            tuner = Tuner(Verdicts(None), choice.activity, host.is_busy, lambda device: False, devices=())
        self._engine = Engine(host, choice, _launches(stage.where.device), tuner)
        self._engine.attach()
        # Those very functions come back after stock's turn: for the engine others are somebody's patch.
        self._replacements: dict[type, Callable[..., Any]] = {
            owner: owner.__dict__["forward"] for owner in _owners() if is_ours(owner.__dict__["forward"])
        }

    def prepare(self) -> Spent:
        """Measures, compiles and records all that the call needs."""
        began, waited_s = time.perf_counter(), 0.0
        before: Any = None
        for number in range(1, _MOST_PICTURES + 1):
            self._engine.begin_generation()
            for _ in range(_CALLS):
                self._stage.call()
            waiting = time.perf_counter()
            self._engine.warm_up()
            waited_s += time.perf_counter() - waiting
            now = _found(self._engine.report().tuning)
            if number >= _FEWEST_PICTURES[self._code] and now in ([], before):
                break
            before = now
        if self._stage.where.device.type == "cuda":
            torch.cuda.synchronize(self._stage.where.device)
        self._engine.begin_generation()
        others_s = time.perf_counter() - began - waited_s
        return Spent(waited_s, others_s) if self._code == "compiled" else Spent(0.0, others_s, waited_s)

    @contextlib.contextmanager
    def turn(self) -> Iterator[Callable[[], Tensor]]:
        """The call."""
        yield self._stage.call

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The classes are as they were, while the engine keeps what it has recorded and compiled."""
        for owner in self._replacements:
            owner.forward = junction(owner, "forward").original  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for owner, replacement in self._replacements.items():
                owner.forward = replacement  # type: ignore[attr-defined]

    def about(self) -> Mapping[str, Any]:
        """Blocks of the calls since the warm-up by what ran them, and what was compiled and recorded."""
        report = self._engine.report()
        done = report.generation
        graphs = {key: value for key, value in asdict(report.graphs).items() if key != "cases"}
        return {
            "blocks": {
                "direct": done.direct,
                "compiled": done.compiled,
                "host": done.host,
                "replayed": done.replayed,
            },
            "reasons": dict(done.reasons),
            "compiled": graphs,
            "recorded": asdict(report.launches),
            "operators": _chosen(report.tuning),
            "formats": {
                each.model: f"{'last' if each.is_channels_last else 'first'}: {each.reason}"
                for each in report.tuning.formats
            },
        }

    def contests(self) -> list[dict[str, Any]]:
        """What every operator takes at every size that was met, and the times that speak for it."""
        return [asdict(case) for case in self._engine.report().tuning.cases]

    def close(self) -> None:
        """Every class is as it was, and what was recorded is free."""
        self._engine.detach()


def _launches(device: torch.device) -> Launches:
    """CUDA graphs; on a CPU a stand-in for them, so that all runs as it does there. Remembers nothing."""
    launcher: Launcher = launcher_of_this_process() if device.type == "cuda" else Recorder()
    return Launches({device.type: launcher}, Verdicts(None))


def _own_convolutions(root: nn.Module) -> int:
    """Gives the convolutions weights of their own where the format can be another; returns their bytes."""
    turnable = {id(weight): weight for weight in convolution_weights(root) if is_first(weight)}
    copies = {
        key: nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        for key, weight in turnable.items()
    }
    for module in root.modules():
        weight = module._parameters.get("weight")
        if id(weight) in copies:
            module._parameters["weight"] = copies[id(weight)]
    return sum(each.nbytes for each in copies.values())


def _found(tuning: TuningReport) -> list[Any]:
    """What would run in the next picture, to see whether anything new was found; empty without contests."""
    if not tuning.cases:
        return []
    cases = [(case.operator, case.size, case.chosen, case.next_chosen) for case in tuning.cases]
    return [*cases, *((each.model, each.is_channels_last, each.is_packed) for each in tuning.formats)]


def _chosen(tuning: TuningReport) -> dict[str, Any]:
    """How many sizes of operators another implementation than plain torch computes, and which operators'."""
    taken = Counter(case.operator for case in tuning.cases if case.chosen != TORCH)
    return {
        "sizes": len(tuning.cases),
        "taken": sum(taken.values()),
        "by_operator": dict(taken),
        "pending": tuning.pending,
        "fault": tuning.fault,
    }


def _owners() -> list[type]:
    """The classes that an engine may stand in front of, of the packages that are imported."""
    found = []
    for entry in ENTRIES:
        home, _, name = entry.path.rpartition(".")
        owner = getattr(sys.modules.get(home), name, None)
        if isinstance(owner, type) and "forward" in owner.__dict__:
            found.append(owner)
    return found
