"""torch's own compiler: the same numbers at every size, few graphs, and the next start is warm."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators.convolution_norm import CONVOLUTION_NORM
from lib_accel.blocks.operators.whole import Whole
from lib_accel.blocks.rules import Rules
from lib_accel.errors import CompileError
from lib_accel.graphs import worker
from lib_accel.graphs.compiler import MOST_GRAPHS, Compiler, Graph
from lib_accel.graphs.proof import tolerance
from lib_accel.graphs.structure import Inputs
from lib_accel.graphs.worker import compile_elsewhere, order
from tests.fakes.tuning import Taking
from tests.graphs.small import (
    CHANNELS,
    Block,
    calls,
    difference,
    part,
    prepared,
    residual,
    taken,
    transformer,
)

# torch's compiler uses what torch itself warns of.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """As blocks are called."""
    with torch.no_grad():
        yield


class Compiled(NamedTuple):
    """A block whose graph was made for one size."""

    block: Block
    compiler: Compiler
    graph: Graph

    def check(self, block: Block, inputs: Inputs) -> None:
        """That the graph takes the call and gives what direct code gives."""
        limit = tolerance(block.kind, torch.float32)
        assert difference(taken(self.graph, inputs), block.direct(inputs)) <= limit


@pytest.fixture(scope="module", params=[residual, transformer])
def compiled(request: Any) -> Compiled:
    """Made once for all tests."""
    block, compiler = request.param(), Compiler()
    return Compiled(block, compiler, prepared(compiler, block, calls(block)[0]))


def has_one_position(inputs: Inputs) -> bool:
    """Of an image of 1x1 or a single token."""
    return inputs.x.numel() == inputs.x.shape[0] * CHANNELS


def test_every_size_is_equal_to_direct_twice_over(compiled: Compiled) -> None:
    sizes = [inputs for inputs in calls(compiled.block) if not has_one_position(inputs)]
    for inputs in sizes * 2:
        compiled.check(compiled.block, inputs)
    assert {len(inputs.x) for inputs in sizes} == set(range(1, 8))


def test_a_single_position_is_right_if_the_compiler_refuses_it_too(compiled: Compiled) -> None:
    for inputs in calls(compiled.block):
        if has_one_position(inputs):
            with contextlib.suppress(CompileError):  # torch 2.13 does, by an AssertionError
                prepared(compiled.compiler, compiled.block, inputs)
            found, _ = compiled.graph.run(inputs)
            limit = tolerance(compiled.block.kind, torch.float32)
            assert difference(found, compiled.block.direct(inputs)) <= limit
        else:
            compiled.check(compiled.block, inputs)
    assert compiled.graph.graphs <= MOST_GRAPHS


def test_weights_written_in_place_are_seen_at_once(compiled: Compiled) -> None:
    own = compiled.block.replaced(Tensor.clone)
    given = calls(own)[0]
    before = taken(compiled.graph, given)
    for weight in own.weights:
        if weight is not None:
            weight.add_(0.5 * weight.flip(0))
    compiled.check(own, given)
    assert difference(taken(compiled.graph, given), before) > 0.05


def test_weights_that_lie_anywhere_in_memory_are_read_right(compiled: Compiled) -> None:
    def in_the_middle(weight: Tensor) -> Tensor:
        memory = torch.cat([weight.flatten()[:1], weight.flatten(), weight.flatten()])
        return memory[1 : 1 + weight.numel()].view(weight.shape)

    given = calls(compiled.block)[0]
    moved = compiled.block.replaced(in_the_middle)
    compiled.check(moved, moved.called(given.x, given.besides))


# What a process finds that comes after a worker

_AFTER = """
import torch
from torch._dynamo.utils import counters
from lib_accel.graphs.compiler import Compiler
from tests.graphs.small import calls, difference, prepared, residual, taken
block = residual(8, 24)
torch.set_num_threads(1)
if {precision!r} is not None:
    torch.set_float32_matmul_precision({precision!r})
compiler = Compiler()
with torch.no_grad():
    for inputs in calls(block)[:2]:
        graph = prepared(compiler, block, inputs)
        assert difference(taken(graph, inputs), block.direct(inputs)) <= 2e-6
found = counters["inductor"]
print(found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], found["fxgraph_cache_bypass"])
"""


def after(folder: Path, precision: str | None) -> list[int]:
    """Hits, misses and bypasses of torch's cache in a folder, in a new process that needs a graph."""
    script = _AFTER.format(precision=precision)
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder)}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return [int(number) for number in found.stdout.split()]


@pytest.fixture(params=[None, "high"])
def precision(request: Any) -> Iterator[str | None]:
    """Of float32 matmuls in this process, which asks; None if nobody has set it."""
    before = order(())
    torch.backends.cuda.matmul.fp32_precision = "none"
    if request.param is not None:
        torch.set_float32_matmul_precision(request.param)
    yield request.param
    list(worker._made(before))


def test_what_a_worker_made_is_found_by_the_process_that_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str | None
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    block = residual(8, 24)
    parts = [part(block, inputs) for inputs in calls(block)[:2]]
    assert list(compile_elsewhere(parts, threading.Event())) == [None, None]
    assert after(tmp_path, precision) == [1, 0, 0]


# Operators that are left whole


def test_compiled_code_around_an_operator_runs_it_by_what_was_chosen() -> None:
    block, rules = residual(8, 24), Rules(tuned=Whole((CONVOLUTION_NORM.name,)))
    found = [each._replace(x=each.x.contiguous(memory_format=torch.channels_last)) for each in calls(block)]
    graph = prepared(Compiler(), block, found[0], rules)
    taking = Taking(CONVOLUTION_NORM.name, lambda *args: 2 * CONVOLUTION_NORM.plain(*args))
    for inputs in [each for each in found if len(each.x) > 1 and each.x.shape[2] > 1]:
        output, is_taken = graph.run(inputs, taking)
        assert difference(output, block.direct(inputs, Rules(tuned=taking))) <= 2e-6
        assert is_taken
