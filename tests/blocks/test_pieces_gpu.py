"""Pieces on a GPU: the same result in all dtypes, less memory, and nothing that a capture forbids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lib_accel.bench.peaks import peak
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.res import ResWeights, res_block
from lib_accel.blocks.rules import Pieces, Rules
from lib_accel.blocks.sample import ConvWeights, upsample
from tests.blocks.pieces import CUTS, LIMITS, WHOLE, drawn
from tests.blocks.test_pieces import LAYOUTS, MODES, image, residual

pytestmark = pytest.mark.gpu


def block(dtype: torch.dtype, layout: str, size: tuple[int, int, int]) -> Callable[[Rules], Tensor]:
    weights, spec = residual(dtype, layout)
    weights = ResWeights(*(None if each is None else each.cuda() for each in weights))
    x = image(size, dtype, layout).cuda()
    return lambda rules: res_block(x, None, weights, spec, rules)


def near(ours: Tensor, right: Tensor) -> bool:
    limit = 10 * LIMITS[right.dtype]  # other kernels for other sizes, and TF32 for some of them
    return ours.dtype is right.dtype and float((ours.double() - right.double()).norm()) <= limit * float(
        right.double().norm()
    )


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "rules"), MODES.values(), ids=MODES)
def test_a_residual_block_is_the_same(dtype: torch.dtype, rules: Rules, layout: str, cut: Pieces) -> None:
    run = block(dtype, layout, (2, 16, 9))
    assert near(run(rules._replace(pieces=cut)), run(rules._replace(pieces=WHOLE)))


def test_it_can_be_captured() -> None:
    run, rules = (
        block(torch.float16, LAYOUTS[0], (1, 64, 64)),
        Rules(torch.float16, torch.float32, None, Pieces(0, 2**16)),
    )
    right = run(rules)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(rules)
    graph.replay()
    assert near(result, right)


def test_it_takes_less_memory() -> None:
    run, cut = block(torch.float16, LAYOUTS[0], (1, 512, 512)), Pieces(0, 2**21)
    rules = Rules(torch.float16, torch.float32)
    peaks = []
    for each in (WHOLE, cut):
        run(rules._replace(pieces=each))
        peaks.append(peak(lambda: run(rules._replace(pieces=each)), torch.device("cuda")).allocated)  # noqa: B023
    assert peaks[1] < 0.7 * peaks[0]


def test_an_enlarged_image_is_the_same() -> None:
    x, weights = drawn(1, 32, 33, 20).cuda().half(), ConvWeights(drawn(32, 32, 3, 3).cuda().half(), None)
    whole, cut = (
        upsample(x, weights, ConvSpec(padding=(1, 1)), Rules(pieces=each))
        for each in (WHOLE, Pieces(0, 2**14))
    )
    assert near(cut, whole)
