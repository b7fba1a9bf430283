"""Our side in the suite of GPUs: an engine around a stage's models, and out of the way in stock's turn."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_accel.bench.gpu.host import GpuHost
from lib_accel.bench.gpu.stage import Stage
from lib_accel.bench.graphs_choice import Backends, own_choice
from lib_accel.engine import Engine
from lib_accel.graphs.cuda_graph import launcher_of_this_process
from lib_accel.graphs.launch import Launches
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.recorder import Recorder
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.layouts import ENTRIES
from lib_accel.options import Options
from lib_accel.patching import is_ours, junction

# Of which one asks for compiled graphs, the next proves them, and the last runs what was proved.
_PICTURES = {"auto": 1, "direct": 1, "compiled": 3}
_CALLS = 4  # of a picture: the first binds, the second is recorded, the others replay


class Spent(NamedTuple):
    """Seconds until a side runs as it will: what compiling took of them, and the rest."""

    compile_s: float
    warmup_s: float


class Ours:
    """The models with our engine in front of their classes. One at a time in a process."""

    settle = 1

    def __init__(self, stage: Stage, options: Options, backends: Backends) -> None:
        self._stage, self._code = stage, options.code
        self.passes_dispatcher = options.code != "compiled"
        host = GpuHost(options, stage.root, stage.networks)
        self._engine = Engine(host, own_choice(backends), launches=_launches(stage.where.device))
        self._engine.attach()
        # Those very functions come back after stock's turn: for the engine others are somebody's patch.
        self._replacements: dict[type, Callable[..., Any]] = {
            owner: owner.__dict__["forward"] for owner in _owners() if is_ours(owner.__dict__["forward"])
        }

    def prepare(self) -> Spent:
        """Compiles and records all that the call needs."""
        began, compile_s = time.perf_counter(), 0.0
        for _ in range(_PICTURES[self._code]):
            self._engine.begin_generation()
            for _ in range(_CALLS):
                self._stage.call()
            compiling = time.perf_counter()
            self._engine.warm_up()
            compile_s += time.perf_counter() - compiling
        if self._stage.where.device.type == "cuda":
            torch.cuda.synchronize(self._stage.where.device)
        self._engine.begin_generation()
        return Spent(compile_s, time.perf_counter() - began - compile_s)

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
        }

    def close(self) -> None:
        """Every class is as it was, and what was recorded is free."""
        self._engine.detach()


def _launches(device: torch.device) -> Launches:
    """CUDA graphs; on a CPU a stand-in for them, so that all runs as it does there. Remembers nothing."""
    launcher: Launcher = launcher_of_this_process() if device.type == "cuda" else Recorder()
    return Launches({device.type: launcher}, Verdicts(None))


def _owners() -> list[type]:
    """The classes that an engine may stand in front of, of the packages that are imported."""
    found = []
    for entry in ENTRIES:
        home, _, name = entry.path.rpartition(".")
        owner = getattr(sys.modules.get(home), name, None)
        if isinstance(owner, type) and "forward" in owner.__dict__:
            found.append(owner)
    return found
