"""Graphs with operators left whole: what is traced, what computes it, and how many there are."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators import custom
from lib_accel.blocks.operators.forms import FORMS
from lib_accel.blocks.operators.gated_linear import GATED_LINEAR
from lib_accel.blocks.operators.whole import Whole
from lib_accel.blocks.rules import Rules
from lib_accel.errors import CompileError
from lib_accel.graphs import compiler as compiler_module
from lib_accel.graphs import worker
from lib_accel.graphs.compiler import Backend, Compiler, Graph
from lib_accel.graphs.structure import Condition, Inputs
from tests.fakes.tuning import Taking
from tests.graphs.small import Backends, Block, calls, difference, part, prepared, residual, transformer

GATED = "gated linear"
LIMIT = 1e-6
ALL = Rules(tuned=Whole(tuple(sorted(FORMS))))
OF_RESIDUAL = ["convolution_norm", "convolution_residual", "group_norm"]
OF_TRANSFORMER = ["attention"] * 2 + ["gated_linear"] + ["layer_norm"] * 3 + ["linear_residual"] * 3


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """As blocks are called."""
    with torch.no_grad():
        yield


class Traced:
    """A back end that runs graphs as they were traced, and keeps them."""

    def __init__(self) -> None:
        self.modules: list[Any] = []

    def __call__(self, condition: Condition) -> Backend:
        return self._compile

    def _compile(self, module: Any, inputs: Any) -> Callable[..., Any]:
        self.modules.append(module)
        return module.forward  # type: ignore[no-any-return]

    @property
    def called(self) -> list[str]:
        """What the graphs call, by name."""
        nodes = [node for module in self.modules for node in module.graph.nodes]
        return sorted(getattr(node.target, "__name__", "") for node in nodes if node.op == "call_function")

    @property
    def whole(self) -> list[str]:
        """The operators among that."""
        nodes = [node for module in self.modules for node in module.graph.nodes]
        found = [str(node.target) for node in nodes if str(node.target).startswith("sd_webui_accel.")]
        return sorted(each.split(".")[1] for each in found)


def traced(block: Block, rules: Rules) -> Traced:
    backend = Traced()
    prepared(Compiler(backend), block, calls(block)[0], rules)
    return backend


def gated() -> tuple[Block, Compiler, Graph]:
    """A block with its gated linear layer left whole."""
    block, compiler = transformer(), Compiler(Backends())
    return block, compiler, prepared(compiler, block, calls(block)[0], Rules(tuned=Whole((GATED,))))


def doubled(*args: Any) -> Tensor:
    return 2 * GATED_LINEAR.plain(*args)


# What is traced


@pytest.mark.parametrize(
    ("block", "names"), [(residual(), OF_RESIDUAL), (transformer(), OF_TRANSFORMER)], ids=["image", "tokens"]
)
def test_each_operator_is_one_call(block: Block, names: list[str]) -> None:
    assert traced(block, ALL).whole == names


def test_an_operator_that_is_left_whole_is_not_traced_besides() -> None:
    found = traced(transformer(), Rules(tuned=Whole((GATED,))))
    assert found.whole == ["gated_linear"]
    assert "gelu" not in found.called
    assert "gelu" in traced(transformer(), Rules()).called


def test_what_holds_where_a_block_is_traced_is_not_in_the_trace() -> None:
    assert traced(transformer(), Rules(tuned=Taking(GATED, doubled))).whole == []


# What computes it


def test_what_is_chosen_computes_what_was_left_whole() -> None:
    block, _, graph = gated()
    inputs, taking = calls(block)[0], Taking(GATED, doubled)
    output, is_taken = graph.run(inputs, taking)
    assert difference(output, block.direct(inputs, Rules(tuned=taking))) <= LIMIT
    assert difference(output, block.direct(inputs)) > 1e-3
    assert is_taken


def test_another_choice_needs_no_other_graph() -> None:
    block, _, graph = gated()
    inputs = calls(block)[0]
    before = graph.run(inputs, Taking(GATED, doubled))[0]
    assert difference(graph.run(inputs)[0], block.direct(inputs)) <= LIMIT
    assert torch.equal(graph.run(inputs, Taking(GATED, doubled))[0], before)
    assert graph.graphs == 1


def test_a_choice_that_fails_is_followed_by_plain_torch() -> None:
    def fail(*args: Any) -> Tensor:
        raise RuntimeError("no such kernel")

    block, _, graph = gated()
    inputs, taking = calls(block)[0], Taking(GATED, fail)
    output, is_taken = graph.run(inputs, taking)
    assert difference(output, block.direct(inputs)) <= LIMIT
    assert (is_taken, taking.failures) == (True, ["gated linear: no such kernel"])


def test_a_call_that_no_graph_takes_is_computed_by_what_was_chosen() -> None:
    block, _, graph = gated()
    given, taking = calls(block)[0], Taking(GATED, doubled)
    assert given.besides is not None
    other = block.replaced(Tensor.double)
    inputs = other.called(given.x.double(), given.besides.double())
    output, is_taken = graph.run(inputs, taking)
    assert torch.equal(output, other.direct(inputs, Rules(tuned=taking)))
    assert not is_taken


# How many there are


def last(inputs: Inputs) -> Inputs:
    return inputs._replace(x=inputs.x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    ("block", "change"),
    [(residual(), lambda inputs: inputs), (transformer(), lambda inputs: inputs), (residual(), last)],
    ids=["image", "tokens", "channels last"],
)
def test_one_graph_serves_all_sizes(block: Block, change: Callable[[Inputs], Inputs]) -> None:
    found = [change(inputs) for inputs in calls(block) if inputs.x.shape[1:].numel() > 16]
    graph = prepared(Compiler(Backends()), block, found[0], ALL)
    for inputs in found:
        output, is_taken = graph.run(inputs)
        assert difference(output, block.direct(inputs)) <= LIMIT
        assert is_taken or (change is last and len(inputs.x) == 1)  # as of plain torch
    assert graph.graphs == 1


def test_each_trace_has_as_many_graphs_as_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_module, "varying", lambda structure: ((), ()))
    block, compiler = transformer(), Compiler(Backends())
    for rules in (Rules(), ALL):
        for inputs in calls(block)[:2]:
            prepared(compiler, block, inputs, rules)
        with pytest.raises(CompileError, match="one graph more than 2"):
            prepared(compiler, block, calls(block)[2], rules)
    counters = compiler.counters()
    assert (counters.structures, counters.graphs, counters.recompiles) == (1, 4, 2)


# Elsewhere


def test_a_worker_makes_such_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    backends, block = Backends(), transformer()
    monkeypatch.setattr(compiler_module, "Compiler", lambda: Compiler(backends))
    wanted = worker.order([part(block, calls(block)[0], rules) for rules in (Rules(), ALL)])
    assert list(worker._made(pickle.loads(pickle.dumps(wanted)))) == [None, None]
    assert backends.graphs == 2


def test_an_older_torch_makes_none_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom, "why_not", lambda: "torch 2.1.2 is too old")
    block, backends = transformer(), Backends()
    with pytest.raises(CompileError, match=r"^torch 2\.1\.2 is too old$"):
        prepared(Compiler(backends), block, calls(block)[0], ALL)
    assert backends.graphs == 0
