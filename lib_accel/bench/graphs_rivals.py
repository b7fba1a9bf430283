"""One call of a UNet by each way to run it: ours, and what torch and diffusers offer to compile it with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lib_accel.bench.graphs_choice import Backends, own_choice
from lib_accel.bench.graphs_models import Place, drawn, sharing
from lib_accel.bench.models import pipeline
from lib_accel.engine import Engine
from lib_accel.graphs.compiler import inductor
from lib_accel.hosts.diffusers_host import DiffusersHost
from lib_accel.options import Options

OURS_DIRECT, OURS_COMPILED, OURS_AUTO = "ours, direct", "ours, compiled", "ours, auto"
WHOLE, REPEATED = "torch.compile", "compile_repeated_blocks"

Given = tuple[Tensor, Tensor]  # latents and context


class Makers(NamedTuple):
    """Who makes graphs: for ours by condition, for the others by the name of torch's back end."""

    ours: Backends = inductor
    others: str = "inductor"


class Rival(Protocol):
    """A way to run a UNet."""

    def prepare(self, given: Given) -> float:
        """Compiles what there is to compile for such a call; returns the seconds that this alone took."""

    def meet(self, given: Given) -> None:
        """Calls it with another size until nothing is left to compile for it.

        Raises torch._dynamo.exc.RecompileError instead of compiling for minutes.
        """

    def turn(self) -> contextlib.AbstractContextManager[Callable[[Given], Tensor]]:
        """The call, in place for the block; nothing of it touches others afterwards."""

    def blocks(self) -> Mapping[str, int]:
        """What the blocks of the latest call ran, by code; empty where nobody knows."""


def call_of(unet: Any) -> Callable[[Given], Tensor]:
    """One call of the UNet with latents and a context."""

    def call(given: Given) -> Tensor:
        x, context = given
        timestep = torch.tensor(500, device=x.device)
        with torch.no_grad():
            result: Tensor = unet(x, timestep, encoder_hidden_states=context, return_dict=False)[0]
        return result

    return call


class _Ours:
    """The UNet in a pipeline, with our engine in front of its classes when it is its turn."""

    def __init__(self, unet: Any, code: str, makers: Makers) -> None:
        self._pipe = pipeline("sd1")
        self._pipe.register_modules(unet=unet)
        choice = own_choice(makers.ours)
        self._engine = Engine(DiffusersHost(self._pipe, Options(code=code)), choice)
        self._call = call_of(unet)

    def prepare(self, given: Given) -> float:
        with self.turn() as call:
            call(given)
            began = time.perf_counter()
            self._engine.warm_up()
            took = time.perf_counter() - began
            for _ in range(2):  # the first proves, the second runs what was proved
                self._engine.begin_generation()
                call(given)
        return took

    def meet(self, given: Given) -> None:
        self.prepare(given)

    @contextlib.contextmanager
    def turn(self) -> Iterator[Callable[[Given], Tensor]]:
        self._engine.attach()
        self._engine.begin_generation()
        try:
            yield self._call
        finally:
            self._engine.detach()

    def blocks(self) -> Mapping[str, int]:
        done = self._engine.generation
        return {"compiled": done.compiled, "direct": done.direct, "host": done.host}


class _Compiled:
    """The UNet as torch.compile or diffusers compiles it."""

    def __init__(self, called: Any, *, is_cheap: bool) -> None:
        self._call, self._is_cheap = call_of(called), is_cheap

    def prepare(self, given: Given) -> float:
        began = time.perf_counter()
        self._call(given)
        took = time.perf_counter() - began
        began = time.perf_counter()
        self._call(given)
        return max(0.0, took - (time.perf_counter() - began))

    def meet(self, given: Given) -> None:
        import torch._dynamo

        patched: Any = torch._dynamo.config.patch
        with patched(error_on_recompile=not self._is_cheap):
            self._call(given)

    @contextlib.contextmanager
    def turn(self) -> Iterator[Callable[[Given], Tensor]]:
        yield self._call

    def blocks(self) -> Mapping[str, int]:
        return {}


def _whole(unet: Any, makers: Makers) -> Rival:
    return _Compiled(torch.compile(unet, dynamic=True, backend=makers.others), is_cheap=False)


def _repeated(unet: Any, makers: Makers) -> Rival:
    unet.compile_repeated_blocks(dynamic=True, backend=makers.others)
    return _Compiled(unet, is_cheap=True)


# Ways by name, and what makes one of a UNet of its own.
RIVALS: Mapping[str, Callable[[Any, Makers], Rival]] = MappingProxyType(
    {
        OURS_DIRECT: lambda unet, makers: _Ours(unet, "direct", makers),
        OURS_COMPILED: lambda unet, makers: _Ours(unet, "compiled", makers),
        OURS_AUTO: lambda unet, makers: _Ours(unet, "auto", makers),
        REPEATED: _repeated,
        WHOLE: _whole,
    }
)


def rival(name: str, stock: Any, makers: Makers) -> Rival:
    """That way to run a UNet of the same weights as `stock`, which stays as it is."""
    return RIVALS[name](sharing(stock), makers)


def inputs(where: Place, context: int, *, height: int, width: int) -> Given:
    """What a call with guidance is given."""
    return drawn(where, 2, 4, height, width), drawn(where, 2, 77, context, seed=2)
