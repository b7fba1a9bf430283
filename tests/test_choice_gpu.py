"""Compiled blocks on a CUDA device: torch's own compiler, in half precision."""

from __future__ import annotations

import pytest
import torch

from lib_accel.graphs.compiler import Compiler
from lib_accel.graphs.proof import tolerance
from tests.fakes.models import Inputs, difference, inputs, tiny_unet
from tests.test_choice import COMPILABLE, Studio, attached

pytestmark = pytest.mark.gpu


def on_cuda(given: Inputs) -> Inputs:
    return Inputs(*(None if each is None else each.cuda() for each in given))


def made(studio: Studio, given: Inputs) -> torch.Tensor:
    """The third picture, under the host's autocast."""
    unet = tiny_unet().cuda()
    with torch.autocast("cuda", dtype=torch.float16):
        return studio.warmed(unet, given)


@pytest.mark.parametrize("given", [inputs(), inputs(batch=1), inputs(size=(24, 14), tokens=231)])
def test_compiled_blocks_give_the_picture_of_direct_ones(given: Inputs) -> None:
    compiler = Compiler()
    with attached(Studio(compiler, code="direct")) as studio:
        expected = made(studio, on_cuda(given))
    with attached(Studio(compiler)) as studio:
        found = made(studio, on_cuda(given))
        assert studio.compiled == COMPILABLE
    assert difference(found.cpu(), expected.cpu()) < 10 * tolerance("transformer block", torch.float16)


def test_sizes_share_the_graphs() -> None:
    compiler = Compiler()
    with attached(Studio(compiler)) as studio:
        for given in (inputs(), inputs(batch=1), inputs(batch=4, size=(10, 6)), inputs(tokens=231)):
            made(studio, on_cuda(given))
    counters = compiler.counters()
    assert counters.graphs <= 2 * counters.structures


def test_what_is_slower_is_not_used_and_the_reason_is_told() -> None:
    with attached(Studio(Compiler(), code="measured")) as studio:
        made(studio, on_cuda(inputs()))
        assert all(case.reason for case in studio.cases())
        assert {case.code for case in studio.cases()} <= {"direct", "compiled", "host"}
