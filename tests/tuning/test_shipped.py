"""Winners that another machine has measured hold from the first picture on, until this one has measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.blocks.operators.operator import run
from lib_accel.channels_last import CHANNELS_LAST
from lib_accel.graphs.proof import Verdict
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.packing import PACKED
from lib_accel.tuning import __main__ as command
from lib_accel.tuning import shipped as shipped_module
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.settings import Settings
from lib_accel.tuning.shipped import Kind, Where, file_of, ship, winners
from lib_accel.way import Way
from tests.tuning.calls import ARGS, LARGER, QUICK
from tests.tuning.rooms import SCALED, operator
from tests.tuning.test_tuner import CPU, DIED, LEFT, SLOWER, Studio

WRONG = Verdict("wrong", "60 % less time than torch", 0.0, 2e-6, {"torch": 2.0, "wrong": 0.8, "quick": 1.0})


Machine = Callable[..., Studio]  # of a folder's name below the test's own


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Makes processes that begin with what is in the folder `shipped`, and ends them after the test."""
    made: list[Studio] = []

    def make(name: str = "user", *, begins: bool = True) -> Studio:
        made.append(Studio(tmp_path / name, winners=tmp_path / ("shipped" if begins else "nothing")))
        return made[-1]

    yield make
    for studio in made:
        studio.contests.close()
    shipped_module._read.cache_clear()


@pytest.fixture
def user(machine: Machine, tmp_path: Path) -> Studio:
    """A machine that has measured nothing, with what another one has shipped that measured one call."""
    machine("maker").picture()
    assert command.main(["ship", "--from", str(tmp_path / "maker"), "--to", str(tmp_path / "shipped")]) == 0
    shipped_module._read.cache_clear()
    return machine()


def content(folder: Path) -> Any:
    return json.loads(file_of("cpu", folder).read_text("utf-8"))


def rewritten(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes the file before anybody reads it."""
    told = content(folder)
    change(told)
    file_of("cpu", folder).write_text(json.dumps(told), "utf-8")


# From the first picture on


def test_what_another_machine_found_holds_at_the_first_call(user: Studio) -> None:
    user.is_busy = True
    assert user.code() == "quick"


def test_what_was_not_shipped_is_plain_torch(user: Studio) -> None:
    assert user.picture(ARGS, LARGER) == ["quick", TORCH]


def test_contests_are_held_all_the_same(user: Studio) -> None:
    user.picture()
    assert len(user.asked) == 1


def test_the_machines_own_verdict_wins_from_the_next_picture_on(user: Studio) -> None:
    user.answers = [SLOWER]
    assert [user.picture(), user.picture()] == [["quick"], [TORCH]]


def test_another_winner_of_its_own_wins_too(user: Studio) -> None:
    user.answers = [QUICK._replace(verdict=WRONG)]
    assert [user.picture(), user.picture()] == [["quick"], ["wrong"]]


def test_nothing_changes_where_both_say_the_same(user: Studio) -> None:
    before, version = user.choices, user.tuner.version
    user.picture()
    assert [user.picture(), user.picture((torch.ones(1, 4, 8, 9), 2.0))] == [["quick"], ["quick"]]
    assert user.choices is before
    assert user.tuner.version == version


def test_nothing_changes_while_a_picture_is_made(user: Studio) -> None:
    user.answers = [SLOWER]
    user.picture()
    assert [user.code(), user.code((torch.ones(1, 4, 8, 9), 2.0))] == ["quick", "quick"]


@pytest.mark.parametrize("answer", [SLOWER, QUICK])
def test_its_own_verdict_holds_after_a_restart(user: Studio, answer: Any, machine: Machine) -> None:
    user.answers = [answer]
    user.picture()
    again = machine()
    assert (again.picture(), again.asked) == ([answer.verdict.code], [])


def test_a_contest_that_was_not_held_says_nothing(user: Studio) -> None:
    user.answers = [LEFT]
    assert [user.picture(), user.picture()] == [["quick"], ["quick"]]


def test_when_all_is_forgotten_it_is_begun_with_again(user: Studio) -> None:
    user.answers = [SLOWER]
    user.picture()
    user.tuner.clear()
    assert user.picture() == ["quick"]


def test_choices_print_what_they_begin_with(user: Studio, machine: Machine) -> None:
    assert repr(user.choices) != repr(machine("other", begins=False).choices)
    assert repr(user.choices) == repr(machine("other").choices)


def test_the_report_says_whose_it_is(user: Studio) -> None:
    user.is_busy = True
    user.code()
    assert (user.case.chosen, user.case.next_chosen) == ("quick", "quick")
    assert user.case.reason == "measured on another such GPU; here: to be measured"
    user.picture()
    assert user.case.reason == QUICK.verdict.reason


# What does not count


@pytest.mark.parametrize(
    ("name", "value"),
    [("torch_minor", "1.0"), ("triton_minor", "1.0"), ("is_launched", True), ("settings", "[]")],
)
def test_what_was_measured_elsewhere_does_not_count(user: Studio, name: str, value: object) -> None:
    rewritten(user.winners, lambda told: told["sets"][0].update({name: value}))
    assert user.code() == TORCH


def test_what_another_gpu_has_shown_does_not_count(user: Studio) -> None:
    rewritten(user.winners, lambda told: told.update(gpu="NVIDIA Other"))
    assert user.code() == TORCH


def test_a_winner_that_is_not_offered_does_not_count(user: Studio) -> None:
    rewritten(user.winners, lambda told: told["sets"][0]["winners"][0].update(winner="gone"))
    assert user.picture() == [TORCH]
    assert user.choices.shipped == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2, "gpu": "cpu", "sets": []}', '{"schema": 1}'])
def test_a_broken_file_is_told_and_does_not_count(
    user: Studio, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file_of("cpu", user.winners).write_text(text, "utf-8")
    with caplog.at_level(logging.WARNING):
        assert user.code() == TORCH
    assert "no winners are shipped" in caplog.text


def test_a_gpu_without_a_file_begins_with_nothing(tmp_path: Path) -> None:
    assert winners(Where.here(CPU, False, Settings.now()), tmp_path) == {}


# What fails


def test_one_that_fails_when_it_runs_is_plain_torch_from_then_on(user: Studio) -> None:
    user.is_busy, raising = True, operator("scaled", "raising")
    rewritten(user.winners, lambda told: told["sets"][0]["winners"][0].update(winner="raising"))
    assert user.code(operator=raising) == "raising"
    assert torch.equal(run(raising, user.choices, *ARGS), raising.plain(*ARGS))
    codes = [user.code(operator=raising)]
    user.tuner.apply()
    assert [*codes, user.code(operator=raising)] == [TORCH, TORCH]


def test_one_that_failed_stays_out_when_other_choices_change(user: Studio) -> None:
    user.is_busy, raising = True, operator("scaled", "raising")
    rewritten(user.winners, lambda told: told["sets"][0]["winners"][0].update(winner="raising"))
    before = user.choices
    run(raising, before, *ARGS)
    user.answers = [LEFT, QUICK]
    user.picture(LARGER)
    user.tuner.apply()
    assert user.choices is not before
    assert user.code(operator=raising) == TORCH


def _crash(studio: Studio) -> str:
    """What a process took in its first picture, in which it ended."""
    studio.is_busy = True
    code = studio.code()
    trials = studio.verdicts._loaded().trials
    for trial in trials.values():
        trial["token"] = "of another process"
    studio.verdicts._write(*trials)
    return code


def test_what_ended_the_program_twice_is_not_begun_with(
    user: Studio, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    assert [_crash(user), _crash(machine())] == ["quick", "quick"]
    with caplog.at_level(logging.WARNING):
        assert machine().code() == TORCH
    assert "the program ended twice" in caplog.text


@pytest.mark.parametrize("then", ["next picture", "idle", "end"])
def test_a_trial_is_over_when_the_picture_is(user: Studio, then: str) -> None:
    user.is_busy = True
    user.code()
    assert len(user.verdicts._loaded().trials) == 1
    user.is_busy = False
    ends = {"next picture": user.tuner.apply, "idle": user.tuner._may_run, "end": user.tuner._begun.end}
    ends[then]()
    assert user.verdicts._loaded().trials == {}


def test_a_contest_that_ends_two_workers_leaves_plain_torch(user: Studio) -> None:
    user.answers = [DIED, DIED]
    assert [user.picture(), user.picture()] == [["quick"], [TORCH]]


# Shipping


def test_a_file_says_what_was_measured_where(user: Studio) -> None:
    told = content(user.winners)
    (entries,) = told["sets"]
    (entry,) = entries.pop("winners")
    assert (told["gpu"], entries["torch_minor"]) == ("cpu", ".".join(torch.__version__.split(".")[:2]))
    assert (entry["operator"], entry["winner"], entry["ms"]) == ("scaled", "quick", QUICK.verdict.ms)
    assert entry["size_class"] == ["4d 4 torch.float32 contiguous cpu 1x6", "2.0"]


def _kept(**changed: Any) -> dict[str, Any]:
    where = Where("NVIDIA GeForce RTX 4090", "2.6", "3.2", True, "[]")
    about = {**where._asdict(), "operator": "scaled", "size_class": ["a"]}
    kept = {"code": "quick", "ms": {TORCH: 2.0, "quick": 1.0, "slow": 3.0}, "about": about}
    return {**kept, **changed}


def test_only_winners_that_say_what_they_are_for_are_shipped(tmp_path: Path) -> None:
    left = [_kept(code=TORCH), {"code": "quick", "ms": {}}]
    assert ship(left, tmp_path) == []
    (file,) = ship([*left, _kept()], tmp_path)
    assert file.name == "nvidia-geforce-rtx-4090.json"
    where = Where("NVIDIA GeForce RTX 4090", "2.6", "3.2", True, "[]")
    assert winners(where, tmp_path) == {Kind("scaled", ("a",)): "quick"}


@pytest.mark.parametrize("way", [CHANNELS_LAST, PACKED], ids=lambda way: way.kept_as)
def test_how_weights_lie_is_not_shipped(way: Way, tmp_path: Path) -> None:
    assert ship([_kept(about={**_kept()["about"], "operator": way.question.name})], tmp_path) == []


def test_shipping_again_replaces_what_is_of_the_same_kind(tmp_path: Path) -> None:
    other = _kept(about={**_kept()["about"], "size_class": ["b"]})
    ship([_kept(), other], tmp_path)
    (file,) = ship([_kept(code="slow")], tmp_path)
    (entries,) = json.loads(file.read_text("utf-8"))["sets"]
    assert [each["winner"] for each in entries["winners"]] == ["slow", "quick"]


def test_the_command_says_where_nothing_is_to_be_shipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Verdicts(tmp_path).put("direct code of a block", Verdict("direct", "nothing is faster"))
    assert command.main(["ship", "--from", str(tmp_path), "--to", str(tmp_path / "to")]) == 1
    assert command.main(["ship", "--from", str(tmp_path / "missing"), "--to", str(tmp_path / "to")]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "tuning: no operator has a winner there that says what it is for"
    assert told[1].startswith("tuning: FileNotFoundError")


def test_a_verdict_is_read_as_it_was_though_it_says_what_it_is_about(user: Studio) -> None:
    user.picture()
    assert user.tuner.verdict(SCALED, ARGS) == QUICK.verdict
