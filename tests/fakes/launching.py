"""An engine on the CPU whose calls are recorded and replayed by the stand-in for CUDA graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.choice import Choice
from lib_accel.engine import Engine
from lib_accel.graphs.launch import Launches
from lib_accel.graphs.recorder import Recorder
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.options import Options
from lib_accel.report import LaunchReport
from tests.fakes.host import FakeHost
from tests.fakes.models import Inputs, inputs, run


class LaunchingStudio:
    """A thread that draws, with `launch` at "graph": as nothing is gained on a CPU, auto would refuse."""

    def __init__(
        self,
        host: FakeHost | None = None,
        choice: Choice | None = None,
        tuner: Any = None,
        **options: Any,
    ) -> None:
        self.host = host or FakeHost()
        self.host.asked = Options(**{"launch": "graph", **options})
        self.recorder = Recorder()
        self.launches = Launches({"cpu": self.recorder}, Verdicts(None))
        self.engine = Engine(self.host, choice, self.launches, tuner)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, *args: Any, **options: Any) -> Iterator[LaunchingStudio]:
        """Its engine attached for the block, and this thread the one that draws."""
        studio = cls(*args, **options)
        studio.engine.attach()
        studio.engine.begin_generation()
        try:
            yield studio
        finally:
            studio.engine.detach()

    def stock(self, unet: nn.Module, given: Inputs | None = None) -> Tensor:
        """What the host makes of it by itself."""
        with self.host.switched_off():
            return run(unet, given or inputs())

    def eager(self, unet: nn.Module, given: Inputs | None = None) -> Tensor:
        """What our code makes of it, launched kernel by kernel."""
        before, self.host.asked = self.host.asked, Options(launch="eager")
        try:
            return run(unet, given or inputs())
        finally:
            self.host.asked = before

    def warmed(self, unet: nn.Module, given: Inputs | None = None) -> Tensor:
        """The third call: after one that runs as always and one that is recorded."""
        for _ in range(2):
            run(unet, given or inputs())
        return run(unet, given or inputs())

    def replayed_by(self, call: Callable[[], object]) -> int:
        """How many blocks a call launches by a recording."""
        before = self.engine.generation.replayed
        call()
        return self.engine.generation.replayed - before

    @property
    def report(self) -> LaunchReport:
        """What is recorded, and why other calls are not."""
        return self.engine.report().launches


def careless(unet: nn.Module, given: Inputs) -> Tensor:
    """One call by somebody who writes into what was handed in and into what came out; returns a copy."""
    mine = given.copy()
    result = run(unet, mine)
    kept = result.clone()
    for each in (result, *mine):
        if each is not None:
            _write(each)
    return kept


@torch.no_grad()
def _write(tensor: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()):
        tensor.fill_(1e6)
