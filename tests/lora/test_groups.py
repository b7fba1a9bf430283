"""Weights that only LoRAs change are written by one call of what was chosen for each kind of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lib_accel.lora import groups
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.groups import Merge, chosen_way, write_together
from lib_accel.lora.terms import Dense, Factors, Rewrite, Term
from tests.fakes.tuning import Taking
from tests.lora.together import ByKind, StandIn, taking

SHAPES = ((24, 32), (24, 32), (16, 8, 3, 3), (24, 32), (16, 8, 3, 3))
BY_KIND = "fake"


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def factors(shape: Sequence[int], rank: int, strength: float, dtype: torch.dtype = torch.float32) -> Factors:
    height, width = shape[0], torch.Size(shape[1:]).numel()
    return Factors(draw(height, rank, dtype=dtype), draw(rank, width, dtype=dtype, seed=1), strength)


def merge_of(shape: Sequence[int] = (24, 32), *ranks: int, dtype: torch.dtype = torch.float32) -> Merge:
    """Of a weight of NaN, with a LoRA of each rank, all of different strengths."""
    terms = [factors(shape, rank, 0.5 - 0.2 * number) for number, rank in enumerate(ranks or (4,))]
    return Merge(
        nn.Parameter(torch.full(tuple(shape), torch.nan, dtype=dtype)), draw(*shape, dtype=dtype), terms
    )


def summed(merge: Merge) -> Tensor:
    weight = torch.empty_like(merge.weight)
    write_sum(weight, merge.base, merge.terms)
    return weight


def assert_right(*merges: Merge, rtol: float = 1e-5) -> None:
    for each in merges:
        torch.testing.assert_close(each.weight.detach(), summed(each), rtol=rtol, atol=1e-5)


def test_weights_of_one_shape_are_one_call() -> None:
    way, merges = StandIn(), [merge_of(shape) for shape in SHAPES]
    assert write_together(merges, taking(way)) == [BY_KIND] * 5
    assert way.sizes == [3, 2]
    assert_right(*merges)


def test_ranks_of_another_class_are_another_call() -> None:
    way, merges = StandIn(), [merge_of((24, 32), 4), merge_of((24, 32), 16), merge_of((24, 32), 40)]
    write_together(merges, taking(way))
    assert way.sizes == [2, 1]


def test_dtypes_are_calls_of_their_own() -> None:
    way = StandIn()
    half = merge_of()._replace(terms=[factors((24, 32), 4, 1.0, torch.float16)])
    merges = [merge_of(), half, merge_of(dtype=torch.float16)]
    write_together(merges, taking(way))
    assert way.sizes == [1, 1, 1]
    assert_right(*merges, rtol=1e-3)


def test_factors_of_several_dtypes_become_the_one_that_holds_both() -> None:
    way = StandIn()
    terms = [factors((24, 32), 4, 1.0, dtype) for dtype in (torch.float16, torch.bfloat16)]
    merge = merge_of()._replace(terms=terms)
    write_together([merge], taking(way))
    ((layer,),) = way.groups
    assert {factor.dtype for pair in layer.pairs for factor in pair[:2]} == {torch.float32}
    assert_right(merge)


def test_pairs_keep_their_order_and_strengths() -> None:
    way, merge = StandIn(), merge_of((24, 32), 2, 5, 9)
    write_together([merge], taking(way))
    ((layer,),) = way.groups
    assert [(pair.down.shape[0], pair.scale) for pair in layer.pairs] == [
        (2, 0.5),
        (5, 0.3),
        (9, pytest.approx(0.1)),
    ]


def unfit(kind: str) -> Merge:
    merge = merge_of()
    delta = draw(24, 32)
    terms: dict[str, list[Term]] = {
        "a dense term": [*merge.terms, Dense(delta, 0.5)],
        "a rewrite": [Rewrite(lambda weight: weight * 0.5, 1.0), *merge.terms],
        "no terms": [],
    }
    if kind in terms:
        return merge._replace(terms=terms[kind])
    if kind == "a base of another dtype":
        return merge._replace(base=merge.base.double())
    return Merge(nn.Parameter(torch.zeros(24)), draw(24), [Dense(draw(24), 1.0)])


@pytest.mark.parametrize(
    "kind", ["a dense term", "a rewrite", "no terms", "a base of another dtype", "one dimension"]
)
def test_what_is_no_sum_of_factors_is_written_by_plain_torch(kind: str) -> None:
    way, merges = StandIn(), [merge_of(), unfit(kind), merge_of()]
    assert write_together(merges, taking(way)) == [BY_KIND, None, BY_KIND]
    assert way.sizes == [2]
    assert torch.equal(merges[1].weight, summed(merges[1]))


def test_what_the_way_does_not_take_is_written_by_plain_torch() -> None:
    way, merges = StandIn(), [merge_of() for _ in range(3)]
    way.refused = {merges[1].weight.data_ptr()}
    assert write_together(merges, taking(way)) == [BY_KIND, None, BY_KIND]
    assert way.sizes == [2]
    assert torch.equal(merges[1].weight, summed(merges[1]))


def test_without_a_choice_all_are_written_by_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(groups, "write_sum", lambda *args: calls.append(args))
    merges = [merge_of(shape) for shape in SHAPES]
    assert write_together(merges, Taking()) == [None] * 5
    assert sorted(map(id, merges)) == sorted(
        id(each) for each in merges for call in calls if all(a is b for a, b in zip(call, each, strict=True))
    )


def test_one_that_fails_is_noted_and_plain_torch_writes_what_it_left() -> None:
    way, merges = StandIn(fails_at=0), [merge_of(), merge_of()]
    tuned = taking(way)
    assert write_together(merges, tuned) == [None, None]
    assert tuned.failures == ["merge LoRAs: no kernel"]
    assert all(torch.equal(each.weight, summed(each)) for each in merges)


def test_a_lack_of_memory_is_no_fault_of_the_way() -> None:
    tuned = taking(StandIn(fails_at=0, error=MemoryError))
    with pytest.raises(MemoryError):
        write_together([merge_of()], tuned)
    assert not tuned.failures


def test_a_base_elsewhere_is_brought_into_the_weight_and_summed_there() -> None:
    way, merge = StandIn(), merge_of((16, 8, 3, 3))
    away = merge._replace(base=merge.base.to(memory_format=torch.channels_last))
    write_together([away], taking(way))
    ((layer,),) = way.groups
    assert layer.base is layer.live
    assert_right(away)
    assert torch.equal(away.base, merge.base)


def test_a_base_beside_the_weight_is_read_where_it_is() -> None:
    way, merge = StandIn(), merge_of()
    write_together([merge], taking(way))
    assert way.groups[0][0].base is merge.base


def test_weights_channels_last_are_matrices_whose_columns_lie_so() -> None:
    way, plain = StandIn(), merge_of((16, 8, 3, 3))
    last = [each.detach().to(memory_format=torch.channels_last) for each in plain[:2]]
    turned = Merge(*last, plain.terms)
    write_together([plain, turned], taking(way))
    assert all(each.live.is_contiguous() for group in way.groups for each in group)
    torch.testing.assert_close(turned.weight, plain.weight.detach())
    assert turned.weight.is_contiguous(memory_format=torch.channels_last)


def test_of_two_layers_that_share_a_weight_the_second_one_counts() -> None:
    way, first = StandIn(), merge_of()
    second = first._replace(terms=[factors((24, 32), 4, -1.0)])
    assert write_together([first, second], taking(way)) == [BY_KIND, None]
    assert torch.equal(first.weight, summed(second))


def test_weights_of_inference_mode_are_written() -> None:
    with torch.inference_mode():
        made = torch.zeros(24, 32)
    merge = merge_of()._replace(weight=made)
    away = merge._replace(base=merge.base.t().contiguous().t())  # it has to be brought
    for each in (merge, away):
        write_together([each], taking(StandIn()))
        assert_right(each)


def test_the_way_of_a_weight_does_not_depend_on_what_is_written_with_it() -> None:
    asked = []
    for count in (1, 2, 40):
        tuned = ByKind(StandIn())
        write_together([merge_of() for _ in range(count)], tuned)
        asked.append([[each.shape for each in args] for args in tuned.asked])
    assert asked[0] == asked[1] == asked[2]


def test_the_way_is_told_without_writing() -> None:
    way, merge = StandIn(), merge_of()
    assert chosen_way(merge, taking(way)) == BY_KIND
    assert chosen_way(unfit("a rewrite"), taking(way)) is chosen_way(merge, Taking()) is None
    way.refused = {merge.weight.data_ptr()}
    assert chosen_way(merge, taking(way)) is None
    assert way.groups == []
    assert merge.weight.isnan().all()
