"""Sides of the suite of GPUs: ways to run the models of a case, ours and what else there is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
import torch._dynamo
import torch._dynamo.utils
from torch import Tensor, nn

from lib_accel.bench.gpu import parts
from lib_accel.bench.gpu.attention import mixing, xformers_mix
from lib_accel.bench.gpu.ours import Ours, Spent
from lib_accel.bench.gpu.stage import Stage
from lib_accel.bench.graphs_choice import Backends
from lib_accel.errors import AccelError
from lib_accel.graphs.compiler import inductor
from lib_accel.options import Options

Call = Callable[[], Tensor]

_GRAPH_MEMORY_MIB = 8192  # where graphs are asked for: enough for all cases


class SideError(AccelError):
    """This side cannot be run here, and why."""


class Makers(NamedTuple):
    """Who makes graphs: for ours by condition, for the others by the name of torch's back end."""

    ours: Backends = inductor
    others: str = "inductor"


class Side(Protocol):
    """A way to run a stage's models."""

    settle: int  # calls after which it runs as it will, when its turn begins
    passes_dispatcher: bool  # whether what it does is operations of torch, so that those can be counted
    own_mib: float  # of weights that it does not share with stock, as it would in a webui

    def prepare(self) -> Spent:
        """Compiles and records what there is to. Raises whatever that raises."""

    def turn(self) -> contextlib.AbstractContextManager[Call]:
        """The call, in place for the block."""

    def away(self) -> contextlib.AbstractContextManager[None]:
        """Nothing of this side is in the way of stock inside the block."""

    def about(self) -> Mapping[str, Any]:
        """What ran how, as plain values."""

    def close(self) -> None:
        """Leaves everything as it had been."""


def side(name: str, stage: Stage, makers: Makers) -> Side:
    """That side of the stage. Raises SideError if it cannot be had here."""
    return SIDES[name](stage.twin(), makers)


class _Plain:
    """The models as they are, or as others change them ahead of the first call."""

    settle = 1
    passes_dispatcher = True
    own_mib = 0.0

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def prepare(self) -> Spent:
        with self.turn() as call:
            first, later = _seconds(call, self._stage), [_seconds(call, self._stage) for _ in range(2)]
        return Spent(0.0, first + sum(later))

    @contextlib.contextmanager
    def turn(self) -> Iterator[Call]:
        yield self._stage.call

    def away(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def about(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing was changed that others see."""


class _Xformers(_Plain):
    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        try:
            self._mix = xformers_mix()
        except (ImportError, OSError) as error:  # also one that was built for another torch
            raise SideError(f"xformers cannot be imported ({type(error).__name__}: {error})") from error

    @contextlib.contextmanager
    def turn(self) -> Iterator[Call]:
        with mixing(self._mix):
            yield self._stage.call


class _Compiled(_Plain):
    """What torch.compile makes of the model, or of blocks of it."""

    passes_dispatcher = False

    def prepare(self) -> Spent:
        # The first call compiles; a mode that records graphs does so in the two after it.
        first = _seconds(self._call, self._stage)
        later = [_seconds(self._call, self._stage) for _ in range(4)]
        return Spent(max(0.0, first - later[-1]), sum(later))

    @contextlib.contextmanager
    def turn(self) -> Iterator[Call]:
        yield self._call

    def _call(self) -> Tensor:
        # Results of graphs that Inductor records are overwritten by the next call, which must be announced.
        mark: Callable[[], None] = torch.compiler.cudagraph_mark_step_begin
        mark()
        return self._stage.call()

    def about(self) -> Mapping[str, Any]:
        counted = torch._dynamo.utils.counters
        return {
            "graphs": int(counted["stats"]["unique_graphs"]),
            # Of graphs that Inductor was to record and did not, as it sees work of the CPU in them, say.
            "cudagraph_skips": int(counted["inductor"]["cudagraph_skips"]),
        }

    def close(self) -> None:
        torch._dynamo.reset()


def _ours(code: str, launch: str) -> Callable[[Stage, Makers], Side]:
    options = Options(code=code, launch=launch, graph_memory_mib=_GRAPH_MEMORY_MIB)
    return lambda stage, makers: Ours(stage, options, makers.ours)


def _whole(stage: Stage, mode: str, makers: Makers) -> Side:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for name, model in list(stage.root.items()):
        compiled: Any = torch.compile(model, mode=mode, dynamic=False, backend=makers.others)
        stage.root[name] = compiled
    return _Compiled(stage)


def _blocks(stage: Stage, makers: Makers) -> Side:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    blocks = [each for each in stage.root.modules() if type(each).__name__ == "BasicTransformerBlock"]
    if not blocks:
        raise SideError(f"{stage.case.model} has no transformer blocks")
    for block in blocks:
        _compile_in_place(block, makers.others)
    return _Compiled(stage)


def _compile_in_place(block: nn.Module, backend: str) -> None:
    compile_it: Any = block.compile
    compile_it(dynamic=True, backend=backend)


def _seconds(call: Callable[[], Any], stage: Stage) -> float:
    """Of one call, until its device has done it."""
    began = time.perf_counter()
    call()
    if stage.where.device.type == "cuda":
        torch.cuda.synchronize(stage.where.device)
    return time.perf_counter() - began


# By the names of parts.py, what makes each of a stage of its own.
SIDES: Mapping[str, Callable[[Stage, Makers], Side]] = MappingProxyType(
    {
        parts.STOCK: lambda stage, makers: _Plain(stage),
        parts.DIRECT: _ours("direct", "eager"),
        parts.DIRECT_GRAPH: _ours("direct", "graph"),
        parts.AUTO: lambda stage, makers: Ours(stage, Options(), makers.ours),
        # No memory for graphs, instead of no graphs: operators are measured for another launch then.
        parts.AUTO_SINGLE: lambda stage, makers: Ours(stage, Options(graph_memory_mib=0), makers.ours),
        parts.COMPILED: _ours("compiled", "eager"),
        parts.COMPILED_GRAPH: _ours("compiled", "graph"),
        parts.XFORMERS: lambda stage, makers: _Xformers(stage),
        parts.BLOCKS: _blocks,
        parts.WHOLE: lambda stage, makers: _whole(stage, "default", makers),
        parts.OVERHEAD: lambda stage, makers: _whole(stage, "reduce-overhead", makers),
        parts.AUTOTUNE: lambda stage, makers: _whole(stage, "max-autotune", makers),
    }
)
