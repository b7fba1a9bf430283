"""The LoRA kernel writes into many weights at once what the formula says, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_accel.kernels import lora_fuse
from lib_accel.kernels.lora_fuse import TOLERANCES, Layer, Pair, candidates, launch, why_not
from tests.kernels.place import DTYPES, IS_INTERPRETED, MARKS, assert_near, random

pytestmark = MARKS

# The interpreter multiplies the bit patterns of bfloat16 matrices, so only a GPU can test those.
FACTOR_DTYPES = tuple(each for each in DTYPES if not (IS_INTERPRETED and each is torch.bfloat16))


def layer(shape: tuple[int, ...], dtype: torch.dtype, factor: torch.dtype, ranks: tuple[int, ...]) -> Layer:
    """A weight of zeros with its base, and a pair of each rank."""
    height, width = shape[0], torch.Size(shape[1:]).numel()
    base = random(*shape, dtype=dtype, seed=len(ranks))
    pairs = [
        Pair(random(height, rank, dtype=factor), random(rank, width, dtype=factor), 0.25 - 0.5 * (rank % 2))
        for rank in ranks
    ]
    return Layer(torch.zeros_like(base), base, pairs)


def exact(layer: Layer) -> Tensor:
    total = layer.base.double().flatten(1)
    for up, down, scale in layer.pairs:
        total = total + scale * up.double() @ down.double()
    return total.view(layer.base.shape)


@pytest.mark.parametrize("factor", FACTOR_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(70, 33, 3, 3), (64, 128), (1, 5)], ids=str)
def test_kernel_equals_base_plus_pairs(
    shape: tuple[int, ...], dtype: torch.dtype, factor: torch.dtype
) -> None:
    layers = [layer(shape, dtype, factor, ranks) for ranks in ((4,), (1, 16, 33), (8, 8))]
    bases = [each.base.clone() for each in layers]
    assert why_not(layers) == ()
    launch(layers)
    for each, base in zip(layers, bases, strict=True):
        assert_near(each.live, exact(each), TOLERANCES)
        assert torch.equal(each.base, base)


def test_each_candidate_equals_base_plus_pairs() -> None:
    alone = layer((70, 90), torch.float16, torch.float16, (4, 20))
    tiles = candidates([alone])
    assert len(set(map(repr, tiles))) == len(tiles) > 1
    for tile in tiles:
        alone.live.fill_(torch.nan)
        launch([alone], tile=tile)
        assert_near(alone.live, exact(alone), TOLERANCES)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    ranks=st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=3),
)
@settings(max_examples=8, deadline=None)
def test_kernel_equals_base_plus_pairs_for_any_shape(
    height: int, width: int, ranks: list[tuple[int, ...]]
) -> None:
    layers = [layer((height, width), torch.float16, torch.float16, each) for each in ranks]
    launch(layers)
    for each in layers:
        assert_near(each.live, exact(each), TOLERANCES)


def test_without_pairs_the_base_comes_back_to_the_bit() -> None:
    alone = layer((40, 50), torch.float16, torch.float16, ())
    launch([alone])
    assert torch.equal(alone.live, alone.base)


def test_base_may_be_the_weight_itself() -> None:
    apart = layer((40, 50), torch.float32, torch.float32, (4,))
    same = apart._replace(live=apart.base.clone())
    launch([same._replace(base=same.live)])
    launch([apart])
    assert torch.equal(same.live, apart.live)


def test_weights_that_ask_for_gradients_are_written() -> None:
    alone = layer((8, 8), torch.float32, torch.float32, (4,))
    parameter = torch.nn.Parameter(alone.live)
    lora_fuse.lora_fuse([alone._replace(live=parameter)])
    assert_near(parameter.detach(), exact(alone), TOLERANCES)


def test_one_launch_for_each_kind_of_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(lora_fuse, "launch", lambda layers: launched.append(len(layers)) or launch(layers))
    small = [layer((6, 10), torch.float16, torch.float16, (4,)) for _ in range(3)]
    large = [layer((12, 10), torch.float16, torch.float16, (4, 2)) for _ in range(2)]
    mixed = layer((6, 10), torch.float16, torch.float16, (4,))
    mixed = mixed._replace(pairs=[*mixed.pairs, Pair(random(6, 2), random(2, 10), 1.0)])
    transposed = layer((10, 6), torch.float16, torch.float16, (4,))
    transposed = transposed._replace(live=torch.zeros_like(transposed.base.t().contiguous()).t())
    layers = [small[0], large[0], transposed, small[1], large[1], small[2]]
    lora_fuse.lora_fuse(layers)
    lora_fuse.lora_fuse([mixed])
    assert launched == [3, 2]
    for each in (*layers, mixed):
        assert_near(each.live, exact(each), TOLERANCES)
