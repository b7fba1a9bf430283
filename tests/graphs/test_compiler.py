"""One compiled function serves every size, weight and thread, and a call never compiles."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch._dynamo
import torch._inductor.config
import torch.fx.experimental._config
from torch import Tensor, nn

from lib_accel.blocks.rules import Rules
from lib_accel.errors import CompileError
from lib_accel.graphs import compiler as compiler_module
from lib_accel.graphs.compiler import MOST_GRAPHS, Backend, Compiler, Graph
from lib_accel.graphs.structure import Condition, Inputs
from tests.graphs.small import (
    EMB,
    Backends,
    Block,
    calls,
    difference,
    part,
    prepared,
    residual,
    taken,
    transformer,
)

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1e-6


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """As blocks are called."""
    with torch.no_grad():
        yield


class Compiled(NamedTuple):
    """A block whose graph was made for one size."""

    block: Block
    backends: Backends
    compiler: Compiler
    graph: Graph


@pytest.fixture(scope="module", params=[residual, transformer])
def compiled(request: Any) -> Compiled:
    """One for all tests that add no graph."""
    block, backends = request.param(), Backends()
    compiler = Compiler(backends)
    return Compiled(block, backends, compiler, prepared(compiler, block, calls(block)[0]))


def check(compiled: Compiled, block: Block, inputs: Inputs) -> None:
    """That the one graph takes the call and gives what direct code gives."""
    assert difference(taken(compiled.graph, inputs), block.direct(inputs)) <= LIMIT
    assert compiled.graph.graphs == compiled.backends.graphs == 1


# What one graph serves


def test_one_graph_serves_all_sizes(compiled: Compiled) -> None:
    for inputs in calls(compiled.block):
        check(compiled, compiled.block, inputs)


def test_a_graph_that_takes_a_size_is_not_made_again_for_it(compiled: Compiled) -> None:
    for inputs in calls(compiled.block):
        assert prepared(compiled.compiler, compiled.block, inputs) is compiled.graph
    assert compiled.backends.graphs == 1


def test_one_graph_serves_all_checkpoints(compiled: Compiled) -> None:
    other = {"residual": residual, "transformer block": transformer}[compiled.block.kind](seed=9)
    inputs = calls(other)[0]
    check(compiled, other, inputs)
    assert difference(other.direct(inputs), compiled.block.direct(calls(compiled.block)[0])) > 0.1


def in_the_middle(weight: Tensor) -> Tensor:
    """The same values in the middle of other memory, as a packed or mapped file gives them."""
    memory = torch.cat([weight.flatten()[:1], weight.flatten(), weight.flatten()])
    return memory[1 : 1 + weight.numel()].view(weight.shape)


@pytest.mark.parametrize(
    "change",
    [nn.Parameter, lambda weight: nn.Parameter(weight * 1.5, requires_grad=False), in_the_middle],
    ids=["Parameter", "frozen Parameter", "part of other memory"],
)
def test_replaced_weights_need_no_graph(compiled: Compiled, change: Callable[[Tensor], Tensor]) -> None:
    given = calls(compiled.block)[0]
    other = compiled.block.replaced(change)
    check(compiled, other, other.called(given.x, given.besides))


def test_weights_written_in_place_are_seen_at_once(compiled: Compiled) -> None:
    own = compiled.block.replaced(Tensor.clone)
    given = calls(own)[0]
    before = taken(compiled.graph, given)
    for weight in own.weights:
        if weight is not None:
            weight.add_(0.5 * weight.flip(0))
    check(compiled, own, given)
    assert difference(taken(compiled.graph, given), before) > 0.05


def test_layers_may_share_a_weight(compiled: Compiled) -> None:
    shared: dict[Any, Tensor] = {}
    own = compiled.block.replaced(lambda weight: shared.setdefault(weight.shape, weight))
    given = calls(own)[0]
    check(compiled, own, own.called(given.x, given.besides))


def test_a_graph_serves_other_threads(compiled: Compiled) -> None:
    faults: list[BaseException] = []

    def work() -> None:
        try:
            with torch.no_grad():
                check(compiled, compiled.block, calls(compiled.block)[2])
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not faults


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_graph_serves_blocks_with_autocast_off_inside_autocast(
    compiled: Compiled, dtype: torch.dtype
) -> None:
    with torch.autocast("cpu", dtype), torch.autocast("cpu", enabled=False):
        check(compiled, compiled.block, calls(compiled.block)[0])


def test_a_graph_made_inside_autocast_is_as_any_other() -> None:
    block, backends = residual(), Backends()
    inputs = calls(block)[0]
    with torch.autocast("cpu", torch.bfloat16):
        graph = prepared(Compiler(backends), block, inputs)
        assert torch.is_autocast_enabled("cpu")
    check(Compiled(block, backends, Compiler(backends), graph), block, inputs)


def made_in(block: Block, inputs: Inputs, *, weights: bool, x: bool, besides: bool) -> Inputs:
    """The call, with tensors that were made in inference mode or outside of it."""

    def copy(tensor: Tensor, is_inference: bool) -> Tensor:
        with torch.inference_mode(is_inference), torch.no_grad():
            return tensor.clone()

    assert inputs.besides is not None
    other = block.replaced(lambda weight: copy(weight, weights))
    return other.called(copy(inputs.x, x), copy(inputs.besides, besides))


@pytest.mark.parametrize("mode", [True, False], ids=["in the mode", "outside"])
@pytest.mark.parametrize(
    "made",
    [
        {"weights": False, "x": True, "besides": True},
        {"weights": True, "x": True, "besides": True},
        {"weights": False, "x": True, "besides": False},
        {"weights": False, "x": False, "besides": False},
    ],
    ids=["all but weights", "all", "x", "none"],
)
def test_tensors_made_in_inference_mode_have_a_graph(made: dict[str, bool], mode: bool) -> None:
    block, backends = residual(), Backends()
    first, second = (made_in(block, inputs, **made) for inputs in calls(block)[:2])
    with torch.inference_mode(mode), torch.no_grad():
        graph = prepared(Compiler(backends), block, first)
        assert difference(taken(graph, second), block.direct(second)) <= LIMIT
    assert backends.graphs == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rules_are_part_of_a_graph(dtype: torch.dtype) -> None:
    block, rules = residual(), Rules(matmul=dtype)
    inputs = calls(block)[0]
    graph = prepared(Compiler(Backends()), block, inputs, rules)
    output, expected = taken(graph, inputs), block.direct(inputs, rules)
    assert output.dtype is expected.dtype
    assert difference(output, expected) <= LIMIT


def channels_last(inputs: Inputs) -> Inputs:
    return inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))


def test_images_in_channels_last_share_a_graph_but_for_a_batch_of_one() -> None:
    block, backends = residual(), Backends()
    compiler = Compiler(backends)
    found = [channels_last(inputs) for inputs in calls(block) if inputs.x.shape[2:].numel() > 1]
    graphs = {prepared(compiler, block, inputs) for inputs in found}
    for inputs in found:
        assert difference(taken(next(iter(graphs)), inputs), block.direct(inputs)) <= LIMIT
    assert (len(graphs), backends.graphs) == (1, 2)


# Calls that no graph takes


def test_a_call_without_a_graph_is_computed_and_told() -> None:
    block, backends = residual(), Backends()
    inputs = calls(block)[0]
    wanted = part(block, inputs)
    graph = Graph(wanted.structure, wanted.condition, backends(wanted.condition))
    output, was_taken = graph.run(inputs)
    assert torch.equal(output, block.direct(inputs))
    assert (was_taken, backends.graphs) == (False, 0)


def of_another_dtype(block: Block) -> tuple[Block, Inputs]:
    """A block and a call that the graph of `block` does not take."""
    other, given = block.replaced(Tensor.double), calls(block)[0]
    assert given.besides is not None
    return other, other.called(given.x.double(), given.besides.double())


def test_a_call_of_another_dtype_is_computed_and_told() -> None:
    block, backends = transformer(), Backends()
    graph = prepared(Compiler(backends), block, calls(block)[0])
    other, inputs = of_another_dtype(block)
    for _ in range(2):
        output, was_taken = graph.run(inputs)
        assert torch.equal(output, other.direct(inputs))
        assert (was_taken, backends.graphs) == (False, 1)


def test_a_call_after_one_that_was_not_taken_is_taken() -> None:
    block = transformer()
    graph = prepared(Compiler(Backends()), block, calls(block)[0])
    assert not graph.run(of_another_dtype(block)[1])[1]
    assert difference(taken(graph, calls(block)[0]), block.direct(calls(block)[0])) <= LIMIT


class Interrupted:
    """A back end whose graphs have something happen on another thread while they run, once it is set."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] | None = None

    def __call__(self, condition: Condition) -> Backend:
        return self._compile

    def _compile(self, module: Any, inputs: Any) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            if self.meanwhile is not None:
                thread = threading.Thread(target=self.meanwhile)
                thread.start()
                thread.join()
            return module.forward(*given)

        return run


def test_a_miss_on_one_thread_is_not_charged_to_another() -> None:
    block, backend = transformer(), Interrupted()
    graph, found = prepared(Compiler(backend), block, calls(block)[0]), []

    def miss() -> None:
        with torch.no_grad():
            found.append(graph.run(of_another_dtype(block)[1])[1])

    backend.meanwhile = miss
    assert graph.run(calls(block)[0])[1]
    assert found == [False]


def test_a_call_with_gradients_on_is_right(compiled: Compiled) -> None:
    inputs = calls(compiled.block)[0]
    with torch.enable_grad():
        assert difference(compiled.graph.run(inputs)[0], compiled.block.direct(inputs)) <= LIMIT
    assert compiled.backends.graphs == 1


@pytest.fixture
def sizes_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a graph took but the size that it was made for."""
    monkeypatch.setattr(compiler_module, "varying", lambda structure: ((), ()))


def test_sizes_have_no_more_graphs_than_agreed(sizes_are_fixed: None) -> None:
    block, backends = residual(), Backends()
    compiler, sizes = Compiler(backends), calls(block)
    for inputs in sizes[:MOST_GRAPHS]:
        graph = prepared(compiler, block, inputs)
    with pytest.raises(CompileError, match=r"takes 3x16x6x10 .*: one graph more than 2$"):
        prepared(compiler, block, sizes[3])
    assert graph.graphs == backends.graphs == MOST_GRAPHS
    found = [graph.run(inputs) for inputs in sizes]
    for (output, _), inputs in zip(found, sizes, strict=True):
        assert difference(output, block.direct(inputs)) <= LIMIT
    assert sum(was_taken for _, was_taken in found) == MOST_GRAPHS


def test_a_size_that_needs_a_graph_of_its_own_is_told(sizes_are_fixed: None) -> None:
    block = residual()
    compiler, (first, second, *_) = Compiler(Backends()), calls(block)
    prepared(compiler, block, first)
    prepared(compiler, block, second)
    prepared(compiler, block, first)
    counters = compiler.counters()
    assert (counters.structures, counters.graphs, counters.recompiles) == (1, 2, 1)
    assert counters.reasons == [
        f"{block.structure()}: no graph takes 1x16x6x10 with 1x{EMB}, made for 2x16x8x8 with 2x{EMB}"
    ]


def test_counters_tell_structures_from_graphs() -> None:
    block = residual()
    compiler, inputs = Compiler(Backends()), calls(block)[0]
    assert compiler.counters() == compiler_module.Counters()
    prepared(compiler, block, inputs)
    prepared(compiler, block, inputs, Rules(matmul=torch.bfloat16))
    counters = compiler.counters()
    assert (counters.structures, counters.graphs, counters.recompiles) == (1, 2, 0)
    assert counters.compile_s > 0
    assert counters.reasons == []


# Compilers that fail


def failing(error: Exception) -> Callable[[Condition], Backend]:
    """A back end that raises this."""

    def compile_graph(module: Any, inputs: Any) -> Callable[..., Any]:
        raise error

    return lambda condition: compile_graph


def test_a_failing_compiler_is_told_by_the_first_line_of_its_error() -> None:
    block = residual()
    compiler = Compiler(failing(RuntimeError("no C++ compiler found\nand much more")))
    with pytest.raises(CompileError) as caught:
        prepared(compiler, block, calls(block)[0])
    assert str(caught.value) == f"{block.structure()}: RuntimeError: no C++ compiler found"


def test_a_first_line_that_announces_the_next_ends_without_a_colon() -> None:
    block = residual()
    with pytest.raises(CompileError, match=r": RuntimeError: AssertionError$"):
        prepared(Compiler(failing(RuntimeError("AssertionError: \n target: x"))), block, calls(block)[0])


def test_an_error_without_a_message_is_told_by_its_kind() -> None:
    block = residual()
    with pytest.raises(CompileError, match=r": MemoryError: no message$"):
        prepared(Compiler(failing(MemoryError())), block, calls(block)[0])


def test_a_failure_to_find_a_back_end_is_a_failure_to_compile() -> None:
    block = residual()

    def missing(condition: Condition) -> Backend:
        raise ImportError("no inductor")

    with pytest.raises(CompileError, match="ImportError: no inductor"):
        prepared(Compiler(missing), block, calls(block)[0])


def test_a_failure_is_not_counted_as_a_graph() -> None:
    block = residual()
    compiler = Compiler(failing(RuntimeError("no")))
    for _ in range(MOST_GRAPHS + 1):
        with pytest.raises(CompileError, match=r": no$"):
            prepared(compiler, block, calls(block)[0])
    assert compiler.counters().graphs == 0


def test_sizes_that_a_block_cannot_have_are_a_failure_to_compile() -> None:
    block = residual()
    wanted = part(block, calls(block)[0])
    odd = wanted.sizes._replace(x=(2, 15, 8, 8))
    with pytest.raises(CompileError):
        Compiler(Backends()).prepare(wanted.structure, wanted.condition, odd)


# What is torch's and the host's


def settings() -> list[dict[str, Any]]:
    """All of torch's settings that have to do with compilers."""
    homes: tuple[Any, ...] = (torch._dynamo.config, torch._inductor.config, torch.fx.experimental._config)
    return [home.get_config_copy() for home in homes]


@pytest.mark.parametrize("backend", [Backends(), failing(RuntimeError("no"))], ids=["works", "fails"])
def test_torchs_settings_are_as_before(backend: Callable[[Condition], Backend]) -> None:
    block, before = residual(), settings()
    try:
        prepared(Compiler(backend), block, calls(block)[0])
    except CompileError:
        pass
    finally:
        assert settings() == before


def test_random_numbers_go_on_as_if_nothing_was_compiled() -> None:
    block, before = residual(), (torch.get_rng_state(), random.getstate())
    prepared(Compiler(Backends()), block, calls(block)[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("backend", [Backends(), failing(RuntimeError("no"))], ids=["works", "fails"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_modes_are_left_as_they_were(mode: Any, backend: Callable[[Condition], Backend]) -> None:
    block = residual()
    wanted = part(block, calls(block)[0])
    with mode(), torch.autocast("cpu", torch.bfloat16):
        before = modes()
        try:
            Compiler(backend).prepare(*wanted)
        except CompileError:
            pass
        finally:
            assert modes() == before


def modes() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


_AFTER_RESET = """
import torch
from tests.graphs.small import Backends, calls, difference, prepared, residual, taken
from lib_accel.graphs.compiler import Compiler
block, backends = residual(), Backends()
compiler, inputs = Compiler(backends), calls(block)[0]
with torch.no_grad():
    graph = prepared(compiler, block, inputs)
    torch._dynamo.reset()
    output, was_taken = graph.run(inputs)
    assert difference(output, block.direct(inputs)) <= 1e-6
    assert (was_taken, backends.graphs) == (False, 1)
    graph = prepared(compiler, block, inputs)
    assert difference(taken(graph, inputs), block.direct(inputs)) <= 1e-6
    assert backends.graphs == 2
"""


def test_graphs_that_somebody_threw_away_are_missed_and_made_again() -> None:
    found = subprocess.run([sys.executable, "-c", _AFTER_RESET], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
