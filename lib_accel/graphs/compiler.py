"""torch.compile of a block's function: one compiled function a structure, weights as arguments.

Compiling and running are two things here. `Compiler.prepare` compiles, where it disturbs nobody; a call of
what it returns never does: inputs that no graph takes are computed by the plain function, and counted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.kinds import KINDS, compute
from lib_accel.blocks.operators import custom
from lib_accel.blocks.operators.operator import Tuned
from lib_accel.blocks.operators.whole import Whole, computed_by
from lib_accel.blocks.rules import Rules
from lib_accel.device import is_compiling
from lib_accel.errors import CompileError
from lib_accel.graphs.structure import (
    Condition,
    Inputs,
    Sizes,
    Structure,
    example,
    is_channels_last,
    varying,
)

# What makes a callable of a graph of torch operations and example inputs, as torch.compile's backends do.
Backend = Callable[[Any, Any], Callable[..., Any]]

# A batch of one is a graph of its own with some back ends, all other sizes share one.
MOST_GRAPHS = 2

# While a graph is made. Without the first, a height that happens to equal the width is taken to equal it
# always; without the second, a batch of one is a graph of its own everywhere.
_SHAPE_SETTINGS = MappingProxyType({"use_duck_shape": False, "backed_size_oblivious": True})


class Graph:
    """The compiled function of one structure under one condition. Calling it never compiles."""

    def __init__(self, structure: Structure, condition: Condition, backend: Backend) -> None:
        self.structure, self.condition = structure, condition
        self.prepared: list[Sizes] = []  # that graphs were made for
        self.graphs = 0
        self.compile_s = 0.0
        self._missed = threading.local()  # `it`: whether this thread's call was taken by none
        self._backend = backend
        self._body = _body(structure, condition.rules, self._note_miss)
        self._run: Callable[..., Tensor] | None = None

    def run(self, inputs: Inputs, tuned: Tuned | None = None) -> tuple[Tensor, bool]:
        """The block's output, and whether a graph took the inputs; if not, it is the plain function's.

        tuned: what computes the operators that the graph leaves whole, if it leaves any.
        """
        self._missed.it = False
        with computed_by(tuned):
            result = (self._run or self._body)(*inputs)
        return result, not self._missed.it

    def compile(self, inputs: Inputs, sizes: Sizes) -> None:
        """Makes one more graph, that takes these inputs. Raises whatever torch.compile raises."""
        import torch._dynamo

        began = time.perf_counter()
        with _shape_settings():
            compiled = torch.compile(self._body, backend=self._count, dynamic=False, fullgraph=True)
            compiled(*_marked(inputs, self.structure))
        self.compile_s += time.perf_counter() - began
        self._run = torch._dynamo.run(self._body)
        self.prepared.append(sizes)

    def _count(self, module: Any, inputs: Any) -> Callable[..., Any]:
        compiled = self._backend(module, inputs)
        self.graphs += 1
        return compiled

    def _note_miss(self) -> None:
        self._missed.it = True


def _body(structure: Structure, rules: Rules, missed: Callable[[], None]) -> Callable[..., Tensor]:
    kind, spec = KINDS[structure.kind], structure.spec

    def block(x: Tensor, besides: Tensor | None, weights: Sequence[Tensor | None]) -> Tensor:
        if not is_compiling():
            missed()
        return compute(kind, x, besides, weights, spec, rules)

    # Dynamo keeps its graphs at the code, and asks them one after the other at each call.
    block.__code__ = block.__code__.replace(co_name=f"{structure.kind.replace(' ', '_')}_block")
    return block


def _marked(inputs: Inputs, structure: Structure) -> Inputs:
    """The same tensors, with the dimensions marked that vary."""
    import torch._dynamo

    marked = inputs._replace(
        x=inputs.x.detach(), besides=None if inputs.besides is None else inputs.besides.detach()
    )
    for tensor, dimensions in zip(marked[:2], varying(structure), strict=True):
        for dimension in dimensions if isinstance(tensor, Tensor) else ():
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return marked


@contextlib.contextmanager
def _shape_settings() -> Iterator[None]:
    """torch's settings for the `with` block, those that this version has, and as they were afterwards."""
    try:
        from torch.fx.experimental import _config
    except ImportError:  # before torch 2.2
        yield
        return
    known = {name: value for name, value in _SHAPE_SETTINGS.items() if hasattr(_config, name)}
    with _config.patch(known) if known else contextlib.nullcontext():  # type: ignore[attr-defined]
        yield


def inductor(condition: Condition) -> Backend:
    """torch's own compiler, with the options that suit the condition."""
    options = _known_options({**_OPTIONS, **({} if is_channels_last(condition) else _CHANNELS_FIRST)})

    def compile_graph(module: Any, inputs: Any) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        compiled: Any = compile_fx(module, inputs, config_patches=options)
        return compiled  # type: ignore[no-any-return]

    return compile_graph


# Frozen weights would not see a LoRA; graphs of CUDA are captured by ourselves, if at all.
_OPTIONS: Mapping[str, Any] = {"freezing": False, "triton.cudagraphs": False}
# Else each convolution copies its weight to the other layout at every call.
_CHANNELS_FIRST: Mapping[str, Any] = {"layout_optimization": False}


def _known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that this version of torch has."""
    from torch._inductor import config

    names = ("get_config_copy", "shallow_copy_dict", "to_dict")  # from the newest versions to the oldest
    known = next(getattr(config, name) for name in names if hasattr(config, name))()
    return {name: value for name, value in options.items() if name in known}


@dataclass
class Counters:
    """What was compiled in this process."""

    structures: int = 0
    graphs: int = 0
    recompiles: int = 0  # graphs beyond the first of a structure under one condition
    compile_s: float = 0.0
    reasons: list[str] = field(default_factory=list)  # of recompiles


class Compiler:
    """The graphs of a process, by structure and condition."""

    def __init__(self, backend_for: Callable[[Condition], Backend] = inductor) -> None:
        self._backend_for = backend_for
        self._graphs: dict[tuple[Structure, Condition], Graph] = {}
        self._reasons: list[str] = []
        self._lock = threading.Lock()  # torch compiles one thing at a time anyway

    def prepare(self, structure: Structure, condition: Condition, sizes: Sizes) -> Graph:
        """The graph that takes calls of these sizes, made if there is none.

        Raises CompileError, with the reason, if it cannot be made or would be one too many.
        """
        with self._lock, _as_called(condition):
            try:
                return self._prepare(structure, condition, sizes)
            except CompileError:
                raise
            except Exception as error:  # a compiler of any version, with any back end, on any machine
                raise CompileError(f"{structure}: {_first_line(error)}") from error

    def _prepare(self, structure: Structure, condition: Condition, sizes: Sizes) -> Graph:
        if isinstance(whole := condition.rules.tuned, Whole):
            if (reason := custom.why_not()) is not None:
                raise CompileError(reason)
            custom.define(whole.names)
        graph = self._graphs.get((structure, condition))
        if graph is None:
            graph = Graph(structure, condition, self._backend_for(condition))
            self._graphs[structure, condition] = graph
        inputs = example(structure, condition, sizes)
        if graph.run(inputs)[1]:
            return graph
        if graph.graphs:
            reason = f"{structure}: {_difference(sizes, graph.prepared)}"
            if graph.graphs >= MOST_GRAPHS:
                raise CompileError(f"{reason}: one graph more than {MOST_GRAPHS}")
            self._reasons.append(reason)
        graph.compile(inputs, sizes)
        if not graph.run(inputs)[1]:
            raise CompileError(f"{structure}: the graph does not take what it was made for")
        return graph

    def counters(self) -> Counters:
        """What was compiled so far."""
        graphs = [graph for graph in list(self._graphs.values()) if graph.graphs]
        return Counters(
            structures=len({graph.structure for graph in graphs}),
            graphs=sum(graph.graphs for graph in graphs),
            recompiles=sum(graph.graphs - 1 for graph in graphs),
            compile_s=sum(graph.compile_s for graph in graphs),
            reasons=list(self._reasons),
        )


@contextlib.contextmanager
def _as_called(condition: Condition) -> Iterator[None]:
    """The modes in which blocks are called: graphs are kept apart by them."""
    device = torch.device(condition.device)
    kind = device.type
    on_device = torch.cuda.device(device) if kind == "cuda" else contextlib.nullcontext()
    with (
        on_device,
        torch.inference_mode(condition.is_inference),
        torch.no_grad(),
        torch.autocast(kind, enabled=False),
    ):
        yield


def _difference(sizes: Sizes, prepared: Sequence[Sizes]) -> str:
    """In which way sizes differ from those that graphs were made for."""
    known = prepared[-1] if prepared else None
    return f"no graph takes {_told(sizes)}" + ("" if known is None else f", made for {_told(known)}")


def _told(sizes: Sizes) -> str:
    text = "x".join(map(str, sizes.x))
    return text if sizes.besides is None else f"{text} with {'x'.join(map(str, sizes.besides))}"


def _first_line(error: Exception) -> str:
    # torch wraps the errors of a back end, under a first line that does not say what happened.
    while isinstance(inner := getattr(error, "inner_exception", None), Exception):
        error = inner
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip(' :') if lines else 'no message'}"
