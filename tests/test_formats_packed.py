"""A model's projections are packed as its attention parts were measured to be faster, and come back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lib_accel import packing
from lib_accel.blocks.adjacent import are_adjacent
from lib_accel.blocks.operators.operator import Arguments, Operator
from lib_accel.blocks.operators.projections import PROJECTIONS
from lib_accel.formats import Formats
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.packing import BY_OTHERS, PACKED
from lib_accel.way import SHARED
from tests.fakes.attentions import Attentions, bits

FASTER, SLOWER = {"torch": 2.0, "packed": 1.0}, {"torch": 1.0, "packed": 2.0}


class Watch:
    """Measured, with one answer for all calls."""

    def __init__(self, answer: Mapping[str, float] | None) -> None:
        self.answer = answer
        self.asked: list[Arguments] = []

    def verdict(self, operator: Operator, args: Arguments) -> Mapping[str, float] | None:
        assert operator is PROJECTIONS
        self.asked.append(args)
        return self.answer


class Studio:
    """A model of two attentions."""

    def __init__(self, answer: Mapping[str, float] | None, folder: Path | None = None) -> None:
        self.model, self.watch = Attentions(), Watch(answer)
        self.verdicts = Verdicts(folder)
        self.formats = Formats(self.watch, self.verdicts, PACKED)

    def drawn(self) -> bool:
        for attention in (self.model.own, self.model.other):
            self.formats.note(attention.args())
        return self.apply()

    def apply(self) -> bool:
        return self.formats.apply([("UNet", self.model)])

    @property
    def are_packed(self) -> tuple[bool, bool]:
        return are_adjacent(self.model.own.weights), are_adjacent(self.model.other.weights[1:])

    @property
    def reason(self) -> str:
        return self.formats.report()["UNet"].reason


def test_a_model_that_is_faster_so_is_packed() -> None:
    studio = Studio(FASTER)
    assert studio.drawn()
    assert studio.are_packed == (True, True)
    assert studio.formats.report()["UNet"] == (
        True,
        "its attention parts take 4.00 ms apart, 2.00 ms packed",
        {"torch": 4.0, "packed": 2.0},
    )


def test_a_model_that_is_slower_so_stays() -> None:
    studio = Studio(SLOWER)
    assert not studio.drawn()
    assert studio.are_packed == (False, False)
    assert studio.reason == "its attention parts take 2.00 ms apart, 4.00 ms packed"


def test_nothing_is_decided_before_calls_are_timed() -> None:
    studio = Studio(None)
    assert not studio.apply()
    assert studio.reason == "undecided: its attention parts were not called yet"
    assert not studio.drawn()
    assert studio.reason == "undecided: 0 of 2 calls of attention parts are measured"


def test_a_decision_holds_from_the_first_picture_after_a_restart(tmp_path: Path) -> None:
    Studio(FASTER, tmp_path).drawn()
    again = Studio(None, tmp_path)
    assert again.apply()
    assert again.are_packed == (True, True)


def test_a_packed_model_is_not_looked_through_at_every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise AssertionError(args)

    studio = Studio(FASTER)
    studio.drawn()
    told = studio.formats.report()
    studio.formats.way = PACKED._replace(why_not=fail)
    assert not studio.drawn()
    assert studio.formats.report() == told


def test_undo_gives_the_same_parameters_and_bits_back() -> None:
    studio = Studio(FASTER)
    before = [(weight, bits(weight)) for weight in studio.model.parameters()]
    studio.drawn()
    assert studio.formats.undo()
    assert studio.are_packed == (False, False)
    assert [weight for weight, _ in before] == list(studio.model.parameters())
    assert all(torch.equal(bits(weight), values) for weight, values in before)
    assert not studio.formats.undo()


def test_forgotten_decisions_are_undone() -> None:
    studio = Studio(FASTER)
    studio.drawn()
    studio.verdicts.clear()
    assert studio.apply()
    assert studio.are_packed == (False, False)


@pytest.mark.parametrize("layers", ["to_q", "to_k"])
def test_what_others_took_apart_is_packed_again_by_the_next_picture(layers: str) -> None:
    studio = Studio(FASTER)
    studio.drawn()
    weight = getattr(studio.model.own, layers).weight
    weight.data = weight.data.clone()
    assert studio.apply()
    assert studio.are_packed == (True, True)
    assert not studio.apply()


def test_a_model_that_was_moved_as_a_whole_is_packed_again() -> None:
    studio = Studio(FASTER)
    studio.drawn()
    studio.model.double().float()
    assert studio.are_packed == (False, False)
    assert studio.apply()
    assert studio.are_packed == (True, True)


def test_a_model_that_is_elsewhere_now_is_left_alone() -> None:
    studio = Studio(FASTER)
    studio.drawn()
    studio.watch.asked.clear()  # it holds weights
    studio.model.to("meta")
    assert not studio.apply()
    assert studio.reason == "its weights are on meta"


def test_models_that_share_an_attention_have_it_packed_once() -> None:
    studio, other = Studio(FASTER), Attentions()
    other.own, other.other = studio.model.own, studio.model.other
    studio.drawn()
    places = [weight.data_ptr() for weight in other.parameters()]
    models = [("UNet", studio.model), ("ControlNet", other)]
    assert not studio.formats.apply(models)
    assert [weight.data_ptr() for weight in other.parameters()] == places
    assert all(each.is_laid for each in studio.formats.report().values())
    assert studio.formats.undo()
    assert studio.are_packed == (False, False)


def test_of_models_that_share_a_weight_one_is_packed_for_good() -> None:
    studio, other = Studio(FASTER), Attentions()
    other.own.to_q.weight = studio.model.own.to_q.weight
    models: list[tuple[str, nn.Module]] = [("UNet", studio.model), ("ControlNet", other)]
    studio.drawn()
    assert [studio.formats.apply(models) for _ in range(2)] == [False, False]
    assert studio.are_packed == (True, True)
    assert studio.formats.report()["ControlNet"].reason == SHARED


def test_what_another_engine_packed_is_told_and_left_to_it() -> None:
    studio = Studio(FASTER)
    other = Formats(studio.watch, Verdicts(None), PACKED)
    studio.drawn()
    assert not other.apply([("UNet", studio.model)])
    assert other.report()["UNet"] == (True, BY_OTHERS, {})
    assert not other.undo()
    assert studio.are_packed == (True, True)


def test_without_memory_nothing_stays_half_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    studio, pack = Studio(FASTER), packing._pack

    def failing(piece: packing.Piece) -> Any:
        if len(piece) == 2:
            raise MemoryError
        return pack(piece)

    monkeypatch.setattr(packing, "_pack", failing)
    studio.drawn()
    assert studio.are_packed == (False, False)
    assert studio.reason == "there is no memory to lay its weights anew"


def test_calls_are_asked_for_without_the_memory_of_what_they_read() -> None:
    studio = Studio(None)
    studio.drawn()
    x, context, query, key, *rest = studio.watch.asked[1]
    assert (query, key) == studio.model.other.weights[:2]
    assert (x.shape, context.shape, rest[-2:]) == ((2, 6, 16), (2, 3, 8), [2, None])
    with pytest.raises(TypeError, match="without memory"):
        context.sum()


def test_a_model_without_attention_is_not_reported() -> None:
    formats = Formats(Watch(None), Verdicts(None), PACKED)
    assert not formats.apply([("VAE", nn.Conv2d(4, 4, 3))])
    assert formats.report() == {}
