"""A model's convolution weights lie as its residual blocks were measured to be faster, and come back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel import channels_last
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.operators.layout import CHANNELS_LAST, RESIDUAL_LAYOUT, arguments
from lib_accel.blocks.operators.operator import Arguments, Operator
from lib_accel.blocks.res import ResSpec, ResWeights
from lib_accel.blocks.rules import Rules
from lib_accel.channels_last import CHANNELS_LAST as WAY
from lib_accel.channels_last import OF_THE_HOST, convolution_weights, is_first, is_last
from lib_accel.formats import AS_LOADED as CHANNELS_FIRST
from lib_accel.formats import Formats, added, is_worth_it
from lib_accel.graphs.proof import DIRECT, Verdict
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.tuning.signature import call_of
from lib_accel.way import Piece, modules_of

SPEC = ResSpec(
    GroupNormSpec(2, 1e-5, True),
    ConvSpec(padding=(1, 1)),
    GroupNormSpec(2, 1e-5, True),
    ConvSpec(padding=(1, 1)),
    None,
)


class Block(nn.Module):
    """The layers of a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_in, self.conv_in = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3)
        self.embed = nn.Linear(6, 8)
        self.norm_out, self.conv_out = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3)

    def args(self, x: Tensor) -> Arguments:
        layers = (self.norm_in, self.conv_in, self.embed, self.norm_out, self.conv_out)
        weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        return arguments(x, torch.zeros(len(x), 6), ResWeights(*weights), SPEC, Rules())


class Model(nn.Module):
    """Two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.requires_grad_(False)

    @property
    def weight(self) -> nn.Parameter:
        return self.blocks[0].conv_in.weight


NO_MEMORY = "there is no memory to lay its weights anew"


def times(first: float = 2.0, last: float = 1.0) -> dict[str, float]:
    return {CHANNELS_FIRST: first, CHANNELS_LAST: last}


class Watch:
    """Measured, with what a test says: one answer for all calls, or one by the height of the image."""

    def __init__(self, answer: Mapping[Any, Any] | None = None) -> None:
        self.answer = answer
        self.asked: list[Arguments] = []

    def verdict(self, operator: Operator, args: Arguments) -> Mapping[str, float] | None:
        assert operator is RESIDUAL_LAYOUT
        self.asked.append(args)
        answer: Any = self.answer
        return answer.get(args[0].shape[2]) if answer and CHANNELS_FIRST not in answer else answer


class Studio:
    """A model whose pictures are 8 high."""

    def __init__(self, answer: Mapping[Any, Any] | None, folder: Path | None = None) -> None:
        self.model, self.watch = Model(), Watch(answer)
        self.verdicts = Verdicts(folder)
        self.formats = Formats(self.watch, self.verdicts, WAY)

    def draw(self, height: int = 8) -> None:
        for block in self.model.blocks:
            self.formats.note(block.args(torch.zeros(2, 8, height, 8)))

    def apply(self) -> bool:
        return self.formats.apply([("UNet", self.model)])

    def drawn(self) -> bool:
        self.draw()
        return self.apply()

    def is_last(self) -> bool:
        return all(map(is_last, convolution_weights(self.model)))

    def is_first(self) -> bool:
        return all(map(is_first, convolution_weights(self.model)))

    @property
    def reason(self) -> str:
        return self.formats.report()["UNet"].reason


# The decision


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        (times(10.0, 9.7), True),
        (times(10.0, 9.71), False),
        (times(10.0, 20.0), False),
        ({CHANNELS_FIRST: 10.0}, False),
        ({}, False),
    ],
)
def test_channels_last_has_to_save_three_per_cent(ms: dict[str, float], expected: bool) -> None:
    assert is_worth_it(ms, CHANNELS_LAST) is expected


def test_times_of_blocks_are_added_up() -> None:
    assert added([times(1.0, 3.0), times(4.0, 1.0)], CHANNELS_LAST) == times(5.0, 4.0)


def test_what_one_block_cannot_have_the_model_cannot_have() -> None:
    assert added([times(), {CHANNELS_FIRST: 1.0}], CHANNELS_LAST) == {CHANNELS_FIRST: 3.0}


def test_order_of_blocks_does_not_matter() -> None:
    each = [times(0.1, 1e9), times(0.2, 1e-9), times(0.3, -1e9)]
    assert added(each, CHANNELS_LAST) == added(each[::-1], CHANNELS_LAST)


def test_a_model_that_is_faster_so_is_turned() -> None:
    studio = Studio(times())
    assert studio.drawn()
    assert studio.is_last()
    assert studio.formats.report()["UNet"][:2] == (
        True,
        "its residual blocks take 4.00 ms channels first, 2.00 ms channels last",
    )


def test_a_model_that_is_slower_so_stays() -> None:
    studio = Studio(times(1.0, 2.0))
    assert not studio.drawn()
    assert studio.is_first()
    assert studio.formats.report()["UNet"] == (
        False,
        "its residual blocks take 2.00 ms channels first, 4.00 ms channels last",
        times(2.0, 4.0),
    )


def test_all_sizes_that_were_drawn_count() -> None:
    studio = Studio({8: times(1.0, 2.0), 16: times(9.0, 3.0)})
    studio.draw(16)
    assert studio.drawn()
    assert studio.formats.report()["UNet"].ms == times(20.0, 10.0)


def test_nothing_is_decided_before_a_call() -> None:
    studio = Studio(times())
    assert not studio.apply()
    assert studio.reason == "undecided: its residual blocks were not called yet"


def test_nothing_is_decided_while_a_time_is_missing() -> None:
    studio = Studio({8: times()})
    studio.draw(16)
    assert not studio.drawn()
    assert studio.is_first()
    assert studio.reason == "undecided: 2 of 4 calls of residual blocks are measured"


def test_it_is_decided_once_the_last_time_is_there() -> None:
    studio = Studio(None)
    studio.drawn()
    studio.watch.answer = times()
    assert studio.apply()
    assert studio.is_last()


def test_nothing_happens_where_nothing_is_measured() -> None:
    studio = Studio(None)
    places = [weight.data_ptr() for weight in studio.model.parameters()]
    assert not studio.drawn()
    assert [weight.data_ptr() for weight in studio.model.parameters()] == places


def test_an_answer_without_times_decides_nothing() -> None:
    studio = Studio({8: {}})
    assert not studio.drawn()
    assert studio.reason.startswith("undecided")


def test_calls_that_cannot_be_timed_are_left_out() -> None:
    studio = Studio({8: times(), 16: {}})
    studio.draw(16)
    assert studio.drawn()
    assert studio.formats.report()["UNet"].ms == times(4.0, 2.0)


def test_a_model_without_convolutions_is_not_reported() -> None:
    formats = Formats(Watch(), Verdicts(None), WAY)
    assert not formats.apply([("text encoder", nn.Linear(2, 2))])
    assert formats.report() == {}


# Across pictures and starts


def test_a_kept_decision_holds_from_the_first_picture_after_a_restart(tmp_path: Path) -> None:
    Studio(times(), tmp_path).drawn()
    again = Studio(None, tmp_path)
    assert again.apply()
    assert again.is_last()


def test_what_is_measured_later_changes_no_decision() -> None:
    studio = Studio(times())
    studio.drawn()
    studio.watch.answer = times(1.0, 2.0)
    studio.draw(16)
    assert not studio.drawn()
    assert studio.is_last()


def test_a_decided_model_is_asked_for_no_more() -> None:
    studio = Studio(times())
    studio.drawn()
    asked = len(studio.watch.asked)
    studio.draw(16)
    studio.drawn()
    assert len(studio.watch.asked) == asked


@pytest.mark.parametrize("change", [lambda model: model.half(), lambda model: model.blocks.append(Block())])
def test_other_weights_are_another_decision(tmp_path: Path, change: Any) -> None:
    Studio(times(), tmp_path).drawn()
    again = Studio(None, tmp_path)
    change(again.model)
    assert not again.apply()


def test_forgotten_decisions_are_undone_and_made_anew() -> None:
    studio = Studio(times())
    studio.drawn()
    studio.verdicts.clear()
    assert studio.apply()
    assert studio.is_first()
    assert studio.drawn()
    assert studio.is_last()


@pytest.mark.parametrize("ms", [{}, {CHANNELS_LAST: "fast"}, {CHANNELS_FIRST: None}])
def test_whatever_a_file_holds_does_no_harm(tmp_path: Path, ms: dict[str, Any]) -> None:
    studio = Studio(times(), tmp_path)
    studio.drawn()
    (name,) = studio.verdicts.beginning("")
    studio.verdicts.put(name, Verdict(DIRECT, "", ms=ms))
    assert not Studio(None, tmp_path).apply()


# What it costs between pictures


def test_modules_are_those_of_torch_in_the_same_order() -> None:
    model = Model()
    model.blocks.append(model.blocks[0])  # one module in two places
    model.register_module("none", None)
    assert modules_of(model) == list(model.modules())


# Who may be turned


def test_what_the_host_has_turned_stays_as_it_is() -> None:
    studio = Studio(times())
    studio.model.to(memory_format=torch.channels_last)
    places = [weight.data_ptr() for weight in studio.model.parameters()]
    assert not studio.drawn()
    assert studio.formats.report()["UNet"] == (True, OF_THE_HOST, {})
    assert not studio.formats.undo()
    assert [weight.data_ptr() for weight in studio.model.parameters()] == places


def test_a_model_that_is_elsewhere_than_its_calls_were_stays() -> None:
    studio = Studio(times())
    studio.draw()
    for block in studio.model.blocks:
        studio.formats._blocks[id(block.conv_in.weight)].calls.clear()
        studio.formats.note(block.args(torch.zeros(2, 8, 8, 8, device="meta")))
    assert not studio.apply()
    assert studio.reason == "undecided: its residual blocks were not called yet"


def test_a_model_in_two_places_stays() -> None:
    studio = Studio(times())
    studio.model.blocks[1].to("meta")
    assert not studio.drawn()
    assert studio.reason == "its weights are on cpu and meta"


def test_a_model_that_others_compile_stays() -> None:
    studio = Studio(times())
    studio.model._compiled_call_impl = print
    assert not studio.drawn()
    assert studio.reason == "it is compiled by torch.compile"


def test_a_turned_model_stays_so_wherever_it_is_kept() -> None:
    studio = Studio(times())
    studio.drawn()
    studio.model.blocks[1].conv_in.to("meta")
    assert not studio.apply()
    assert is_last(studio.model.weight)
    assert studio.formats.report()["UNet"].is_laid


def test_a_weight_that_is_new_in_a_turned_model_is_turned_too() -> None:
    studio = Studio(times())
    studio.drawn()
    studio.model.blocks[0].conv_in = nn.Conv2d(8, 8, 3)
    assert studio.apply()
    assert studio.is_last()


def test_a_weight_that_two_models_share_is_nobody_elses() -> None:
    studio, other = Studio(times()), Model()
    other.blocks[0].conv_in.weight = studio.model.weight
    studio.draw()
    studio.formats.apply([("UNet", studio.model), ("ControlNet", other)])
    assert all(map(is_last, convolution_weights(other)))
    assert studio.formats.undo()
    assert all(map(is_first, convolution_weights(other)))


# Undo


def test_undo_gives_the_same_parameters_bits_and_strides_back() -> None:
    studio = Studio(times())
    before = [(weight, weight.stride(), weight.clone()) for weight in studio.model.parameters()]
    studio.drawn()
    assert studio.formats.undo()
    now = [(weight, weight.stride()) for weight in studio.model.parameters()]
    assert all(a[0] is b[0] and a[1] == b[1] for a, b in zip(now, before, strict=True))
    assert all(torch.equal(weight, values) for weight, _, values in before)
    assert not studio.formats.undo()


def test_undone_models_are_turned_again_by_the_next_picture() -> None:
    studio = Studio(times())
    studio.drawn()
    studio.formats.undo()
    assert studio.apply()
    assert studio.is_last()


def test_undo_reaches_a_model_that_is_no_longer_loaded() -> None:
    studio = Studio(times())
    studio.drawn()
    studio.formats.apply([("UNet", Model())])
    assert studio.formats.undo()
    assert studio.is_first()


@pytest.mark.parametrize("is_decided", [False, True])
def test_models_are_not_held(is_decided: bool) -> None:
    studio = Studio(times() if is_decided else None)
    studio.drawn()
    gone = [weakref.ref(studio.model), weakref.ref(studio.model.weight)]
    del studio.model
    studio.watch.asked.clear()
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert not studio.formats.undo()


def test_without_memory_nothing_stays_half_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    studio, lay, calls = Studio(times()), channels_last._lay, []

    def failing(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        lay(*args)

    monkeypatch.setattr(channels_last, "_lay", failing)
    studio.drawn()
    assert studio.is_first()
    assert studio.reason == NO_MEMORY


class Cramped:
    """Laid, where there is memory for the first weight only; it goes back to its place, or to another."""

    def __init__(self, *, goes_back: bool) -> None:
        self.goes_back, self.tries = goes_back, 0
        self.olds: list[Tensor] = []  # held, so that their memory is taken

    def ids(self) -> set[int]:
        return set()

    def mend(self) -> int:
        return 0

    def lay(self, pieces: Sequence[Piece]) -> int:
        self.tries += 1
        (weight,) = pieces[0]
        self.olds.append(weight.data)
        if not self.goes_back:
            weight.data = weight.data.clone()
        raise MemoryError

    def put_back(self) -> int:
        return 1


def cramped(*, goes_back: bool) -> tuple[Studio, Cramped]:
    studio, laid = Studio(times()), Cramped(goes_back=goes_back)
    studio.formats.way = WAY._replace(laid=lambda: laid)
    return studio, laid


@pytest.mark.parametrize("goes_back", [True, False])
def test_what_came_back_to_its_place_has_not_moved(goes_back: bool) -> None:
    studio, _ = cramped(goes_back=goes_back)
    assert studio.drawn() is not goes_back


def test_a_model_for_which_there_was_no_memory_is_not_tried_at_every_picture() -> None:
    studio, laid = cramped(goes_back=False)
    studio.drawn()
    told = studio.formats.report()
    assert not studio.drawn()
    assert laid.tries == 1
    assert studio.formats.report() == told == {"UNet": (False, NO_MEMORY, times(4.0, 2.0))}


@pytest.mark.parametrize("forget", [Formats.ask_again, Formats.undo])
def test_a_model_for_which_there_was_no_memory_is_tried_again_when_that_is_asked_for(forget: Any) -> None:
    studio, laid = cramped(goes_back=True)
    studio.drawn()
    forget(studio.formats)
    studio.drawn()
    assert laid.tries == 2


def test_other_weights_of_a_model_are_tried_though_there_was_no_memory_before() -> None:
    studio, laid = cramped(goes_back=True)
    studio.drawn()
    studio.model.half()
    for _ in range(2):  # the first one says that its blocks are to be noted anew
        studio.drawn()
    assert laid.tries == 2


def test_what_there_is_no_memory_to_add_to_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    studio = Studio(times())
    studio.drawn()
    studio.model.blocks[0].conv_in = nn.Conv2d(8, 8, 3)
    with monkeypatch.context() as patch:
        patch.setattr(channels_last, "_lay", fail)
        assert not studio.apply()
    assert studio.apply()
    assert studio.is_first()


def test_what_there_was_no_memory_to_put_back_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    studio = Studio(times())
    studio.drawn()
    studio.verdicts.clear()
    with monkeypatch.context() as patch:
        patch.setattr(channels_last, "_lay", fail)
        studio.apply()
        studio.drawn()
    assert studio.formats.undo()
    assert studio.is_first()


# What is asked of who measures


def test_calls_are_asked_for_as_they_were_but_without_memory() -> None:
    studio = Studio(None)
    studio.drawn()
    x, emb, *rest = studio.watch.asked[0]
    assert (x.shape, x.stride(), x.dtype) == ((2, 8, 8, 8), (512, 64, 8, 1), torch.float32)
    assert (emb.shape, x.device.type, x.is_contiguous()) == ((2, 6), "cpu", True)
    assert rest[2] is studio.model.weight
    assert rest[-3:] == [SPEC, None, None]
    with pytest.raises(TypeError, match="a tensor without memory"):
        x.sum()


def test_images_that_lie_channels_last_are_asked_for_so() -> None:
    studio = Studio(None)
    image = torch.zeros(2, 8, 8, 8).to(memory_format=torch.channels_last)
    studio.formats.note(studio.model.blocks[0].args(image))
    studio.apply()
    assert is_last(studio.watch.asked[0][0])


def test_who_measures_knows_a_call_by_what_it_is_asked_with() -> None:
    studio = Studio(None)
    args = studio.model.blocks[0].args(torch.zeros(2, 8, 8, 8))
    studio.formats.note(args)
    studio.apply()
    assert call_of(RESIDUAL_LAYOUT, studio.watch.asked[0]) == call_of(RESIDUAL_LAYOUT, args)


def test_a_block_that_took_the_place_of_a_dead_one_is_its_own() -> None:
    studio = Studio(None)
    studio.draw()
    (old, number), (_, other) = [(each, id(each.conv_in.weight)) for each in studio.model.blocks]
    studio.formats._blocks[number] = studio.formats._blocks[other]  # as if it had been at the same address
    assert studio.formats.note(old.args(torch.zeros(2, 8, 8, 8)))


def test_dead_blocks_are_forgotten() -> None:
    studio = Studio(None)
    studio.draw()
    studio.model = Model()
    studio.watch.asked.clear()
    gc.collect()
    studio.apply()
    assert studio.formats._blocks == {}


def test_each_size_of_a_block_is_asked_for_once() -> None:
    studio = Studio(None)
    studio.draw()
    studio.draw()
    studio.drawn()
    assert len(studio.watch.asked) == 2


def test_sizes_without_end_are_not_remembered() -> None:
    studio = Studio(None)
    for height in range(1, 30):
        studio.draw(height)
    studio.apply()
    assert len(studio.watch.asked) == 2 * 8


def test_blocks_whose_weights_are_no_parameters_are_not_noted() -> None:
    studio = Studio(times())
    args = studio.model.blocks[0].args(torch.zeros(2, 8, 8, 8))
    assert not studio.formats.note(tuple(_plain(each) for each in args))
    assert not studio.apply()


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def test_a_call_whose_weight_was_replaced_since_is_not_asked_for() -> None:
    studio = Studio(times())
    studio.draw()
    studio.model.blocks[0].norm_in = nn.GroupNorm(2, 8)
    studio.apply()
    assert len(studio.watch.asked) == 1


def test_each_size_is_to_be_timed_once() -> None:
    studio = Studio(None)
    block = studio.model.blocks[0]
    args = [block.args(torch.zeros(2, 8, height, 8)) for height in (8, 8, 16)]
    assert [studio.formats.note(each) for each in args] == [True, False, True]
    studio.apply()
    assert [studio.formats.note(each) for each in args] == [False, False, False]


@pytest.mark.parametrize("forget", [Formats.ask_again, Formats.undo])
def test_what_was_forgotten_is_to_be_timed_again(forget: Any) -> None:
    studio = Studio(None)
    args = studio.model.blocks[0].args(torch.zeros(2, 8, 8, 8))
    studio.formats.note(args)
    forget(studio.formats)
    assert [studio.formats.note(args), studio.formats.note(args)] == [True, False]
    studio.apply()
    assert len(studio.watch.asked) == 1


def test_nothing_is_to_be_timed_of_a_model_that_is_decided() -> None:
    studio = Studio(times())
    studio.drawn()
    assert not studio.formats.note(studio.model.blocks[0].args(torch.zeros(2, 8, 16, 8)))
