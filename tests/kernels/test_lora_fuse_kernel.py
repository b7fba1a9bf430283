"""The LoRA kernel writes into many weights at once what the formula says, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_accel.kernels import lora_fuse
from lib_accel.kernels.configs import ANY, FUSE_SINGLE
from lib_accel.kernels.lora_fuse import TOLERANCES, Layer, Pair, candidates, launch, why_not
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.groups import Merge, write_together
from lib_accel.lora.merge import MERGE, ByKernel, MergeKind, asked
from lib_accel.lora.terms import Factors
from lib_accel.tuning.signature import call_of, example
from tests.fakes.tuning import Taking
from tests.kernels.place import DEVICE, DTYPES, IS_INTERPRETED, LAYOUTS, MARKS, assert_near, random

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


def test_the_first_ranks_of_larger_factors_are_taken_where_they_lie() -> None:
    whole = layer((40, 50), torch.float16, torch.float16, (20, 24))
    pairs = [
        Pair(up[:, :n], down[:n], scale) for (up, down, scale), n in zip(whole.pairs, (5, 1), strict=True)
    ]
    cut = whole._replace(pairs=pairs)
    assert not cut.pairs[0].up.is_contiguous()
    assert why_not([cut]) == ()
    launch([cut])
    assert_near(cut.live, exact(cut), TOLERANCES)


@pytest.mark.parametrize("scale", [0.0, -1.75, 3.1e-5, 2.0**-130])
def test_scales_are_float32(scale: float) -> None:
    alone = layer((16, 16), torch.float32, torch.float32, (4, 4))
    pairs = [pair._replace(scale=each) for pair, each in zip(alone.pairs, (scale, 0.1), strict=True)]
    launch([alone := alone._replace(pairs=pairs)])
    assert_near(alone.live, exact(alone), TOLERANCES)


def test_a_scale_that_float32_cannot_hold_is_infinite() -> None:
    assert [lora_fuse._bits(scale) for scale in (1e39, -1.0)] == [0x7F800000, 0xBF800000 - 2**32]


def test_many_pairs_of_all_ranks_are_summed() -> None:
    many = layer((40, 50), torch.float16, torch.float16, (1, 3, 4, 8, 16, 20, 33, 43))
    launch([many])
    assert_near(many.live, exact(many), TOLERANCES)


def test_a_write_is_counted() -> None:
    counted = layer((8, 8), torch.float32, torch.float32, (4,))
    before = counted.live._version
    launch([counted])
    assert counted.live._version == before + 1


def test_inference_tensors_which_have_no_count_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(tensor: Tensor) -> None:
        assert not tensor.is_inference()  # for which some versions of torch raise an error

    monkeypatch.setattr(torch.autograd.graph, "increment_version", count)
    with torch.inference_mode():
        uncounted = layer((8, 8), torch.float32, torch.float32, (4,))
    launch([uncounted])
    assert_near(uncounted.live, exact(uncounted), TOLERANCES)


def test_weights_on_their_way_to_the_operator_are_merged_by_the_kernel_as_by_plain_torch() -> None:
    ways, shapes = ByKernel(FUSE_SINGLE[ANY][0]), ((20, 12), (6, 5, 3, 3), (20, 12))
    tuned = Taking(MERGE.name, ways)
    for form in LAYOUTS.values():
        merges = [merged(shape, form) for shape in shapes]
        assert write_together(merges, tuned) == ["fake"] * 3
        for each in merges:
            live = torch.empty_like(each.weight)
            write_sum(live, each.base, each.terms)
            torch.testing.assert_close(each.weight, live)


def merged(shape: tuple[int, ...], form: torch.memory_format) -> Merge:
    made = layer(shape, torch.float32, torch.float32, (3, 5))
    lies: dict[str, Any] = {"memory_format": form} if len(shape) == 4 else {}
    weights = [each.contiguous(**lies) for each in made[:2]]
    return Merge(*weights, [Factors(*pair) for pair in made.pairs])


def test_every_implementation_of_the_operator_agrees_with_plain_torch() -> None:
    kind = MergeKind.of(torch.empty(32, 32, device=DEVICE).half(), torch.float16, (20,))
    args = example(call_of(MERGE, asked(kind)))
    right = MERGE.plain(*args)
    rivals = MERGE.others(*args)
    assert [each.name for each in rivals] == [each.name for each in MERGE.others(*asked(kind))]
    for rival in rivals[:2]:
        torch.testing.assert_close(rival.run(*args), right)


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
