"""Blocks in pieces give what they give as a whole, up to rounding, and in the same form."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.bench.ops import operations
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.image import shrink
from lib_accel.blocks.operators.attention import in_torch
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.pieces import usual
from lib_accel.blocks.res import ResSpec, ResWeights, res_block
from lib_accel.blocks.rules import AS_IT_COMES, Pieces, Rules
from lib_accel.blocks.sample import ConvWeights, OutSpec, OutWeights, out_convolution, resize
from lib_accel.blocks.transformer import FeedForwardSpec, FeedForwardWeights, feed_forward
from tests.blocks.pieces import BANDS, CUTS, LIMITS, ROWS, WHOLE, apart, drawn, laid

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

# How numbers are: dtype of what comes, and rules.
MODES = {
    "float32": (F32, AS_IT_COMES),
    "float16": (F16, AS_IT_COMES),
    "bfloat16": (BF16, AS_IT_COMES),
    "a CPU's autocast": (F32, Rules(BF16)),
    "a GPU's autocast": (F32, Rules(F16, F32)),
    "a GPU's autocast of half": (F16, Rules(F16, F32)),
}
LAYOUTS = ("channels first", "channels last")
SIZES = ((1, 7, 5), (2, 16, 9))

Run = Callable[[Rules], Tensor]


def check(run: Run, dtype: torch.dtype, rules: Rules, cut: Pieces) -> None:
    right = run(rules._replace(pieces=WHOLE))
    limit = LIMITS[rules.matmul or dtype]
    assert apart(run(rules._replace(pieces=cut)), right) <= limit


def residual(
    dtype: torch.dtype, layout: str = LAYOUTS[0], *, out: int = 32, upcast: bool = True, **spec: Any
) -> tuple[ResWeights, ResSpec]:
    norms = F32 if upcast else dtype  # GroupNorm32 takes no half weights, a VAE's norm has them
    weights = ResWeights(
        *(1 + 0.2 * drawn(64), 0.2 * drawn(64), 0.06 * drawn(out, 64, 3, 3), 0.2 * drawn(out, seed=1)),
        *(0.3 * drawn(out, 12), 0.1 * drawn(out), 1 + 0.2 * drawn(out, seed=2), 0.2 * drawn(out, seed=3)),
        *(0.06 * drawn(out, out, 3, 3, seed=4), 0.2 * drawn(out, seed=5)),
        *((None, None) if out == 64 else (0.1 * drawn(out, 64, 1, 1), 0.1 * drawn(out, seed=6))),
    )
    dtypes = {name: norms if name.startswith("norm") else dtype for name in ResWeights._fields}
    cast = {
        name: None
        if each is None
        else laid(each, layout).to(dtypes[name])
        if each.dim() == 4
        else each.to(dtypes[name])
        for name, each in weights._asdict().items()
    }
    around, norm = ConvSpec(padding=(1, 1), **spec), GroupNormSpec(16, 1e-6, upcast)
    return ResWeights(**cast), ResSpec(norm, around, norm, around, None if out == 64 else ConvSpec())


def image(size: tuple[int, int, int], dtype: torch.dtype, layout: str = LAYOUTS[0]) -> Tensor:
    """Channels with means of their own, which are larger than what they vary by."""
    batch, height, width = size
    x = 2 * drawn(batch, 64, height, width) + 8 * drawn(1, 64, 1, 1, seed=9)
    return laid(x, layout).to(dtype)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "rules"), MODES.values(), ids=MODES)
def test_a_residual_block_is_the_same(
    dtype: torch.dtype, rules: Rules, size: tuple[int, int, int], layout: str, cut: Pieces
) -> None:
    weights, spec = residual(dtype, layout)
    x, emb = image(size, dtype, layout), drawn(size[0], 12).to(dtype)
    check(lambda rules: res_block(x, emb, weights, spec, rules), dtype, rules, cut)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("changes", [{"out": 64}, {"upcast": False}, {"circular": True}], ids=str)
@pytest.mark.parametrize(("dtype", "rules"), MODES.values(), ids=MODES)
def test_a_residual_block_is_the_same_without_skip_with_a_plain_norm_and_where_it_wraps_round(
    dtype: torch.dtype, rules: Rules, changes: dict[str, Any], cut: Pieces
) -> None:
    weights, spec = residual(dtype, **changes)
    x = image((2, 16, 9), dtype)
    check(lambda rules: res_block(x, None, weights, spec, rules), dtype, rules, cut)


def test_a_residual_block_leaves_its_input_as_it_was() -> None:
    weights, spec = residual(F32, out=64)
    x = image((1, 16, 9), F32)
    before = x.clone()
    assert res_block(x, None, weights, spec, Rules(pieces=BANDS)).data_ptr() != x.data_ptr()
    assert torch.equal(x, before)


def test_a_skip_that_sees_its_neighbours_is_convolved_as_a_whole() -> None:
    weights, spec = residual(F32)
    weights = weights._replace(skip=0.1 * drawn(32, 64, 3, 3))
    spec = spec._replace(skip=ConvSpec(padding=(1, 1)))
    x = image((1, 7, 5), F32)
    check(lambda rules: res_block(x, None, weights, spec, rules), F32, AS_IT_COMES, ROWS)


def test_two_images_are_joined_first() -> None:
    weights, spec = residual(F32)
    left, right = image((1, 7, 5), F32).split((48, 16), dim=1)
    right_one = res_block(torch.cat((left, right), dim=1), None, weights, spec, AS_IT_COMES)
    assert apart(res_block((left, right), None, weights, spec, Rules(pieces=ROWS)), right_one) <= LIMITS[F32]


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "rules"), MODES.values(), ids=MODES)
def test_other_convolutions_are_the_same(
    dtype: torch.dtype, rules: Rules, layout: str, cut: Pieces, circular: bool
) -> None:
    x, weight = image((2, 7, 5), dtype, layout), laid(0.06 * drawn(32, 64, 3, 3), layout).to(dtype)
    weights, around = ConvWeights(weight, drawn(32).to(dtype)), ConvSpec(padding=(1, 1), circular=circular)
    down = ConvSpec((2, 2))
    for size in (None, (14, 10)):
        check(lambda rules: resize(x, size, weights, around, rules), dtype, rules, cut)  # noqa: B023
    check(lambda rules: shrink(x, weights, down, rules), dtype, rules, cut)
    out = OutWeights(1 + drawn(64), drawn(64), weight[:4], None)
    spec = OutSpec(GroupNormSpec(16, 1e-5, True), around)
    check(lambda rules: out_convolution(x, out, spec, rules), dtype, rules, cut)


def test_an_odd_size_is_enlarged_as_a_whole() -> None:
    x, weights = image((1, 3, 4), F32), ConvWeights(0.06 * drawn(32, 64, 3, 3), None)
    around = ConvSpec(padding=(1, 1))
    assert torch.equal(
        resize(x, (5, 7), weights, around, Rules(pieces=ROWS)),
        resize(x, (5, 7), weights, around, AS_IT_COMES),
    )


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("size", [(1, 11, 16), (3, 5, 16)], ids=str)
@pytest.mark.parametrize(("dtype", "rules"), MODES.values(), ids=MODES)
def test_a_feed_forward_part_is_the_same_token_by_token(
    dtype: torch.dtype, rules: Rules, size: tuple[int, int, int], cut: Pieces
) -> None:
    shapes = ((16,), (16,), (128, 16), (128,), (16, 64), (16,))
    weights = FeedForwardWeights(*(0.2 * drawn(*shape).to(dtype) for shape in shapes))
    x = drawn(*size).to(dtype)
    check(lambda rules: feed_forward(x, weights, FeedForwardSpec(1e-5), rules), dtype, rules, cut)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_attention_whose_scores_would_all_be_made_is_the_same_by_queries(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, cut: Pieces
) -> None:
    query, key, value = (
        drawn(2, 9, 24).to(dtype),
        drawn(2, 6, 24).to(dtype),
        drawn(2, 6, 24, seed=1).to(dtype),
    )
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args: 0)
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v: seen.append(q.shape[2]) or real(q, k, v),
    )
    cut = cut._replace(piece_bytes=min(cut.piece_bytes, 200))
    ours = in_torch(query, key, value, 3, None, cut)
    assert len(seen) > 1
    assert sum(seen) == 9
    assert apart(ours, in_torch(query, key, value, 3, None, WHOLE)) <= LIMITS[dtype]


@pytest.mark.parametrize(("choice", "calls"), [(0, 9), (1, 1), (2, 1)])
def test_attention_by_a_kernel_that_keeps_no_scores_stays_whole(
    monkeypatch: pytest.MonkeyPatch, choice: int, calls: int
) -> None:
    query, key = drawn(1, 9, 8), drawn(1, 6, 8)
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args: choice)
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *args: seen.append(1) or real(*args)
    )
    in_torch(query, key, key, 1, None, ROWS)
    assert len(seen) == calls


# When


def launches_of_a_block(rules: Rules) -> int:
    weights, spec = residual(F32)
    x = image((1, 16, 9), F32)
    return len(operations(lambda: res_block(x, None, weights, spec, rules)))


@pytest.mark.parametrize(("bytes_less", "is_cut"), [(0, False), (1, True)])
def test_what_is_larger_than_the_bound_is_cut_and_nothing_else(bytes_less: int, is_cut: bool) -> None:
    bound = 64 * 16 * 9 * 4 - bytes_less
    whole = launches_of_a_block(Rules(pieces=WHOLE))
    assert (launches_of_a_block(Rules(pieces=Pieces(bound, 1))) > whole) == is_cut


def test_a_compiler_is_told_of_no_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = launches_of_a_block(Rules(pieces=WHOLE))
    monkeypatch.setattr("lib_accel.blocks.pieces.is_compiling", lambda: True)
    assert launches_of_a_block(Rules(pieces=ROWS)) == whole
    assert Rules(F16, F32, None, ROWS).plain() == Rules(F16, F32)


def test_gradients_go_through_the_block_as_a_whole() -> None:
    weights, spec = residual(F32)
    x = image((1, 7, 5), F32).requires_grad_()
    with torch.enable_grad():
        res_block(x, None, weights, spec, Rules(pieces=ROWS)).sum().backward()
    assert x.grad is not None


def test_operands_that_are_narrowed_before_a_norm_are_not_cut() -> None:
    weights, spec = residual(F32, upcast=False)
    x, rules = image((1, 7, 5), F32), Rules(BF16, BF16)
    right = res_block(x, None, weights, spec, rules)
    assert torch.equal(res_block(x, None, weights, spec, rules._replace(pieces=ROWS)), right)


@pytest.mark.parametrize(("number", "gib", "whole_mib"), [(0, 2, 512), (1, 80, 10240)])
def test_a_gpu_makes_whole_what_an_eighth_of_its_memory_holds(
    monkeypatch: pytest.MonkeyPatch, number: int, gib: int, whole_mib: int
) -> None:
    """And a VAE's largest image of 1024 x 1024 pixels in half precision in any case."""
    properties = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    pieces = usual(torch.device("cuda", number))
    assert pieces is not None
    assert pieces.whole_bytes == whole_mib * 2**20 >= 2 * 256 * 1024 * 1024


def test_devices_that_nobody_knows_make_all_of_it_whole() -> None:
    assert usual(torch.device("meta")) is None
