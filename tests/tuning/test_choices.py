"""Choices are looked up by what a call is, hold as long as their object, and give way to plain torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest
import torch

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator, run
from lib_accel.tuning import choices as choices_module
from lib_accel.tuning.choices import Choices, Met
from lib_accel.tuning.contest import TORCH
from tests.tuning.calls import ARGS, LARGER, LARGEST


class Room:
    """Operators as choices meet them: a class for each number of rows, and what is told of it."""

    def __init__(self, **winners: str) -> None:
        self.met: list[Arguments] = []
        self.failed: list[tuple[str, str]] = []
        self.runs: list[str] = []
        self.error: Exception | None = None
        rivals = [Implementation(name, lambda *args, name=name: self._run(name)) for name in ("a", "b")]
        self.operator = Operator(
            "each", lambda *args: self._run(TORCH), lambda *args: rivals, ((0, 2, 3), ())
        )
        self.choices = self.new(winners)

    def new(self, winners: Mapping[str, str]) -> Choices:
        return Choices(winners, self._meet, lambda *failed: self.failed.append(failed))

    def _meet(self, operator: Operator, args: Arguments) -> Met | None:
        self.met.append(args)
        others = {other.name: other for other in operator.others(*args)}
        return Met(f"rows {args[0].shape[2]}", others) if args[0].dtype is torch.float32 else None

    def _run(self, name: str) -> torch.Tensor:
        self.runs.append(name)
        if name != TORCH and self.error is not None:
            raise self.error
        return torch.ones(1)

    def code(self, args: Arguments) -> str:
        found = self.choices.implementation(self.operator, args)
        return TORCH if found is None else found.name

    def call(self, args: Arguments = ARGS) -> list[str]:
        """What ran in one call of the operator."""
        self.runs.clear()
        run(self.operator, self.choices, *args)
        return list(self.runs)


def rooms(**rows: str) -> Room:
    return Room(**{f"rows {number[1:]}": code for number, code in rows.items()})


def test_the_winner_of_a_class_is_taken() -> None:
    room = rooms(_8="a", _16="b")
    assert [room.code(each) for each in (ARGS, LARGER, LARGEST)] == ["a", "b", TORCH]


def test_a_winner_that_does_not_take_these_arguments_is_not_taken() -> None:
    assert rooms(_8="c").code(ARGS) == TORCH


def test_arguments_that_only_plain_torch_takes_are_left_to_it() -> None:
    half = (ARGS[0].half(), ARGS[1])
    assert rooms(_8="a").code(half) == TORCH


@pytest.mark.parametrize("args", [ARGS, LARGEST, (ARGS[0].half(), 2.0)], ids=["winner", "none", "alone"])
def test_a_call_is_met_once(args: Arguments) -> None:
    room = rooms(_8="a")
    for _ in range(3):
        room.code(args)
    assert len(room.met) == 1


def test_a_call_of_another_size_is_met_anew() -> None:
    room = rooms(_8="a")
    wider = (torch.ones(1, 4, 8, 9), 2.0)
    assert [room.code(ARGS), room.code(wider), len(room.met)] == ["a", "a", 2]


def test_not_all_sizes_there_ever_were_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices_module, "_MOST_SIGNATURES", 2)
    room = rooms(_8="a", _16="b")
    for _ in range(2):
        assert [room.code(each) for each in (ARGS, LARGER, LARGEST)] == ["a", "b", TORCH]
    assert len(room.met) > 3


def test_choices_are_equal_to_themselves_only() -> None:
    room = rooms(_8="a")
    assert room.choices != room.new(room.choices.winners)
    assert len({room.choices, room.choices}) == 1


def test_equal_choices_print_alike() -> None:
    room = Room()
    first, second = room.new({"x": "a", "y": "b"}), room.new({"y": "b", "x": "a"})
    assert repr(first) == repr(second) == "Choices(5ea84ff8031b2f84cf2f6134)"


@pytest.mark.parametrize("winners", [{}, {"x": "a"}, {"x": "a", "y": "a"}, {"x": "b", "y": "a"}])
def test_other_choices_print_otherwise(winners: dict[str, str]) -> None:
    room = Room()
    assert repr(room.new(winners)) != repr(room.new({"x": "a", "y": "b"}))


def test_what_its_owner_changes_later_changes_no_choice() -> None:
    room, winners = Room(), {"rows 8": "a"}
    room.choices = room.new(winners)
    winners["rows 8"] = "b"
    assert room.code(ARGS) == "a"


# What fails


def test_a_winner_that_fails_gives_way_to_plain_torch_at_once_and_ever_after() -> None:
    room = rooms(_8="a")
    room.error = RuntimeError("no kernel image")
    assert [room.call(), room.call()] == [["a", TORCH], [TORCH]]


def test_a_failure_is_told_with_its_name_and_reason() -> None:
    room = rooms(_8="a")
    room.error = RuntimeError("no kernel image")
    room.call()
    assert room.failed == [("rows 8", "a failed when it ran: RuntimeError: no kernel image")]


def test_a_failure_touches_no_other_class() -> None:
    room = rooms(_8="a", _16="a")
    assert [room.call(), room.call(LARGER)] == [["a"], ["a"]]  # the same function
    room.error = RuntimeError("no kernel image")
    room.call()
    room.error = None
    assert [room.call(LARGER), room.call()] == [["a"], [TORCH]]


def test_a_failure_holds_for_all_sizes_of_its_class() -> None:
    room, wider = rooms(_8="a"), (torch.ones(1, 4, 8, 9), 2.0)
    room.call(wider)
    room.error = RuntimeError("no kernel image")
    room.call()
    assert [room.call(wider), room.call((torch.ones(1, 4, 8, 10), 2.0))] == [[TORCH], [TORCH]]


def test_a_failure_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    room = rooms(_8="a")
    found, error = room.choices.implementation(room.operator, ARGS), RuntimeError("no kernel image")
    assert found is not None
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            room.choices.note_failure(room.operator, found, error)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_memory_that_is_missing_is_no_failure() -> None:
    room = rooms(_8="a")
    room.error = MemoryError()
    with pytest.raises(MemoryError):
        room.call()
    assert (room.failed, room.code(ARGS)) == ([], "a")


def test_what_a_failure_leaves_is_said() -> None:
    room = rooms(_8="a", _16="b")
    room.error = RuntimeError("no kernel image")
    room.call()
    assert [room.choices.code(f"rows {number}") for number in (8, 16, 32)] == [TORCH, "b", TORCH]


def test_calls_that_are_met_anew_are_chosen_alike() -> None:
    room = rooms(_8="a")
    room.code(ARGS)
    room.choices.forget()
    assert (room.code(ARGS), len(room.met)) == ("a", 2)
