"""Blocks that torch's compiler joins around our kernels, on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from lib_accel.blocks.operators.forms import FORMS
from lib_accel.blocks.operators.prefer import Prefer
from lib_accel.blocks.operators.whole import Whole
from lib_accel.blocks.rules import Rules
from lib_accel.graphs.compiler import Compiler
from lib_accel.graphs.cuda_graph import CudaLauncher
from lib_accel.graphs.proof import tolerance
from lib_accel.graphs.structure import Inputs
from lib_accel.graphs.timed import as_launched
from tests.graphs.small import CONTEXT, EMB, Block, difference, drawn, prepared, residual, transformer

pytestmark = pytest.mark.gpu

RULES = Rules(torch.float16, torch.float32, Whole(tuple(sorted(FORMS))))
DIRECT = Rules(torch.float16, torch.float32)
TRITON = Prefer("Triton")
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """As blocks are called."""
    with torch.no_grad():
        yield


def image(batch: int, high: int, wide: int, layout: str) -> tuple[Block, Inputs]:
    """A residual block in half precision, weights and image in the same memory format."""

    def lay(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.cuda().half()
        return tensor.contiguous(memory_format=LAYOUTS[layout]) if tensor.dim() == 4 else tensor

    block = residual(64, 128).replaced(lay)
    x, emb = drawn(batch, 64, high, wide), drawn(batch, EMB)
    return block, block.called(lay(x), lay(emb))


def tokens(batch: int, count: int) -> tuple[Block, Inputs]:
    """A transformer block in half precision."""
    block = transformer(64).replaced(lambda weight: weight.cuda().half())
    x, context = drawn(batch, count, 64), drawn(batch, 77, CONTEXT)
    return block, block.called(x.cuda().half(), context.cuda().half())


def check(block: Block, inputs: Inputs, found: torch.Tensor) -> None:
    right = block.direct(inputs, DIRECT)
    assert found.dtype is right.dtype
    assert difference(found, right) <= tolerance(block.kind, torch.float16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_residual_block_runs_by_our_kernels_at_all_sizes(layout: str) -> None:
    compiler, first = Compiler(), image(2, 16, 16, layout)
    graph = prepared(compiler, *first, RULES)
    for size in ((2, 16, 16), (3, 24, 8), (2, 7, 5)):
        block, inputs = image(*size, layout)
        found, is_taken = graph.run(inputs, TRITON)
        assert is_taken
        check(block, inputs, found)


def test_a_transformer_block_runs_by_our_kernels_at_all_sizes() -> None:
    graph = prepared(Compiler(), *tokens(2, 64), RULES)
    for size in ((2, 64), (4, 96), (2, 35)):
        block, inputs = tokens(*size)
        found, is_taken = graph.run(inputs, TRITON)
        assert is_taken
        check(block, inputs, found)


@pytest.mark.parametrize(
    "make", [lambda: image(2, 16, 16, "first"), lambda: tokens(2, 64)], ids=["image", "tokens"]
)
def test_it_is_recorded_and_replayed(make: Callable[[], tuple[Block, Inputs]]) -> None:
    block, inputs = make()
    graph = prepared(Compiler(), block, inputs, RULES)
    graph.run(inputs, TRITON)
    with as_launched(CudaLauncher(), inputs.x.device) as launched:
        replayed = launched(lambda: graph.run(inputs, TRITON)[0])
        inputs.x.mul_(0.5)
        check(block, inputs, replayed().clone())
