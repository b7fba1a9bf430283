"""Calls are noted, their contests held elsewhere, and winners taken from one picture to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lib_accel.blocks.operators.operator import Arguments, Operator
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.proof import Verdict
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.report import TuningCase
from lib_accel.tuning import tuner as tuner_module
from lib_accel.tuning.choices import Choices
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.contests import Contests
from lib_accel.tuning.process import End
from lib_accel.tuning.settings import Settings
from lib_accel.tuning.tuner import Tuner
from lib_accel.tuning.worker import Answer, Contest
from tests.tuning.calls import ARGS, ENOUGH_S, LARGER, LARGEST, QUICK, wait_until
from tests.tuning.rooms import ENDING, LONELY, SCALED, TABLE

CPU = torch.device("cpu")
DIED = End("the process ended with -11", is_ours=False)
STOPPED = End("the process ended with -9", is_ours=True)
SLOWER = Answer(Verdict(TORCH, "nothing is faster", None, 2e-6, {TORCH: 1.0, "quick": 1.0}), True)
LEFT = Answer(Verdict(TORCH, "not tried: MemoryError: too large"), False)


class FakeWorker:
    """Answers as it was told, one after the other, or else that the quick one won."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def await_ready(self, must_stop: Callable[[], bool]) -> bool:
        return True

    def ask(self, wanted: Contest, must_stop: Callable[[], bool]) -> Answer | End:
        self._studio.asked.append(wanted)
        found = self._studio.answers.pop(0) if self._studio.answers else QUICK
        if found == STOPPED:
            wait_until(must_stop)
        return found

    def end(self) -> None:
        pass


class Studio:
    """A process that draws: its tuner, and what its workers are asked."""

    def __init__(
        self, folder: Path | None, devices: tuple[str, ...] = ("cpu",), winners: Path | None = None
    ) -> None:
        self.contests = Contests(lambda: FakeWorker(self))  # type: ignore[arg-type, return-value]
        self.verdicts, self.activity = Verdicts(folder), Activity(idle_after_s=0.0)
        self.is_busy = self.is_launched = False
        self.asked: list[Contest] = []
        self.answers: list[Answer | End] = []
        self.tuner = Tuner(
            self.verdicts,
            self.activity,
            lambda: self.is_busy,
            lambda device: self.is_launched,
            contests=self.contests,
            table=TABLE,
            devices=devices,
            winners=winners,
        )
        self.winners = winners or Path()

    @property
    def choices(self) -> Choices:
        found = self.tuner.tuned(CPU)
        assert found is not None
        return found

    def code(self, args: Arguments = ARGS, operator: Operator = SCALED) -> str:
        """What computes such a call now."""
        found = self.choices.implementation(operator, args)
        return TORCH if found is None else found.name

    def picture(self, *sizes: Arguments) -> list[str]:
        """What computes these calls in the next picture, after which all contests are held."""
        self.tuner.apply()
        before, self.is_busy = self.is_busy, True
        codes = [self.code(args) for args in sizes or (ARGS,)]
        assert self.tuner.finish(ENOUGH_S)
        self.is_busy = before
        return codes

    @property
    def case(self) -> TuningCase:
        (case,) = self.tuner.report().cases
        return case


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def studio(folder: Path) -> Iterator[Studio]:
    studio = Studio(folder)
    yield studio
    studio.contests.close()


# From picture to picture


def test_a_winner_is_taken_from_the_next_picture_on(studio: Studio) -> None:
    assert [studio.picture() for _ in range(3)] == [[TORCH], ["quick"], ["quick"]]


def test_nothing_changes_while_a_picture_is_made(studio: Studio) -> None:
    before = studio.choices
    studio.picture()
    wider = (torch.ones(1, 4, 8, 9), 2.0)
    assert [studio.code(), studio.code(wider)] == [TORCH, TORCH]
    assert studio.choices is before


def test_choices_are_the_same_object_as_long_as_nothing_changed(studio: Studio) -> None:
    studio.answers = [SLOWER]
    before, version = studio.choices, studio.tuner.version
    studio.picture()
    studio.picture()
    assert studio.choices is before
    assert studio.tuner.version == version


def test_choices_are_another_object_with_another_print_when_they_change(studio: Studio) -> None:
    before, version = studio.choices, studio.tuner.version
    studio.picture()
    studio.tuner.apply()
    assert studio.choices is not before
    assert repr(studio.choices) != repr(before)
    assert studio.tuner.version != version


def test_the_next_process_takes_the_winner_from_its_first_picture_on(studio: Studio, folder: Path) -> None:
    studio.picture()
    studio.tuner.apply()
    again = Studio(folder)
    assert repr(again.choices) == repr(studio.choices)
    assert (again.picture(), again.asked) == (["quick"], [])


def test_the_next_process_does_not_look_again_where_nothing_was_faster(studio: Studio, folder: Path) -> None:
    studio.answers = [SLOWER]
    studio.picture()
    again = Studio(folder)
    assert (again.picture(), again.asked) == ([TORCH], [])


def test_a_kept_winner_that_is_not_there_any_more_is_looked_for_anew(studio: Studio, folder: Path) -> None:
    studio.picture()
    fewer = SCALED._replace(others=lambda *args: SCALED.others(*args)[1:])
    again = Studio(folder)
    assert again.code(operator=fewer) == TORCH
    assert again.tuner.finish(ENOUGH_S)
    assert len(again.asked) == 1


# What is wished for


def test_calls_of_a_class_are_measured_once(studio: Studio) -> None:
    studio.picture(ARGS, (torch.ones(1, 4, 8, 9), 2.0), ARGS)
    assert len(studio.asked) == 1


def test_each_class_is_measured(studio: Studio) -> None:
    studio.picture(ARGS, LARGER, LARGEST)
    assert [contest.call.args[0].shape[-1] for contest in studio.asked] == [8, 16, 32]


def test_a_contest_says_all_that_it_needs(studio: Studio) -> None:
    studio.is_launched = True
    studio.picture()
    (contest,) = studio.asked
    assert contest._replace(call=None) == (TABLE, None, True, Settings.now())  # type: ignore[arg-type]
    assert (contest.call.operator, contest.call.args[1]) == ("scaled", 2.0)


def test_an_operator_that_nobody_else_computes_is_never_noted(studio: Studio) -> None:
    studio.code(operator=LONELY)
    studio.tuner.note(LONELY, ARGS)
    assert (studio.tuner.pending, studio.tuner.report().cases) == (0, [])
    assert all(thread.name != "accel-tuning" for thread in threading.enumerate())


def test_where_operators_have_no_choice_there_are_none(folder: Path) -> None:
    studio = Studio(folder, devices=("cuda",))
    studio.tuner.note(SCALED, ARGS)
    assert studio.tuner.tuned(CPU) is studio.tuner.verdict(SCALED, ARGS) is None
    assert (studio.tuner.pending, studio.tuner.report().cases) == (0, [])


def test_a_call_can_be_measured_without_being_chosen(studio: Studio) -> None:
    studio.is_busy = True
    studio.tuner.note(SCALED, ARGS)
    studio.tuner.note(SCALED, ARGS)
    assert studio.tuner.verdict(SCALED, ARGS) is None
    assert studio.tuner.finish(ENOUGH_S)
    assert (studio.tuner.verdict(SCALED, ARGS), len(studio.asked)) == (QUICK.verdict, 1)


def test_a_verdict_is_known_before_it_is_in_effect(studio: Studio) -> None:
    studio.picture()
    assert (studio.tuner.verdict(SCALED, ARGS), studio.code()) == (QUICK.verdict, TORCH)


def test_to_ask_for_a_verdict_wishes_for_nothing(studio: Studio) -> None:
    assert studio.tuner.verdict(SCALED, ARGS) is None
    assert studio.tuner.pending == 0


def test_there_are_not_more_contests_than_a_machine_has_time_for(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner_module, "_MOST_CASES", 2)
    studio.picture(ARGS, LARGER, LARGEST)
    assert (len(studio.asked), len(studio.tuner.report().cases)) == (2, 2)


def test_threads_that_meet_a_call_at_once_wish_for_one_contest(studio: Studio) -> None:
    studio.is_busy, choices = True, studio.choices
    threads = [threading.Thread(target=choices.implementation, args=(SCALED, ARGS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert studio.tuner.pending == 1


@pytest.mark.parametrize("other", ["launched", "settings"])
def test_what_holds_elsewhere_does_not_hold_here(studio: Studio, other: str) -> None:
    studio.picture()
    studio.tuner.apply()
    before = Settings.now()
    try:
        studio.is_launched = other == "launched"
        torch.backends.cudnn.allow_tf32 = before.switches[2] != (other == "settings")
        assert studio.code() == TORCH
    finally:
        before.take()
    studio.is_launched = False
    assert studio.code() == "quick"


# While somebody draws


@pytest.mark.parametrize("who", ["model", "host"])
def test_nothing_is_measured_while_somebody_draws(studio: Studio, who: str) -> None:
    studio.activity.enter()
    studio.is_busy = who == "host"
    if who == "host":
        studio.activity.leave()
    studio.code()
    assert not studio.tuner._may_run()
    assert (studio.tuner.pending, studio.asked) == (1, [])


def test_a_contest_that_is_stopped_because_somebody_draws_is_held_later(studio: Studio) -> None:
    studio.answers = [STOPPED]
    studio.code()
    wait_until(lambda: len(studio.asked) == 1)
    studio.is_busy = True
    wait_until(lambda: not studio.answers and studio.contests.holding is None)
    assert (studio.tuner.pending, _trials(studio)) == (1, {})
    studio.is_busy = False
    assert studio.tuner.finish(ENOUGH_S)
    assert studio.picture() == ["quick"]


# What ends a worker


def _trials(studio: Studio) -> dict[str, dict[str, object]]:
    return studio.verdicts._loaded().trials


def test_the_end_of_the_program_says_nothing_of_the_contest_that_was_held(
    studio: Studio, folder: Path
) -> None:
    studio.answers = [STOPPED]
    studio.code()
    wait_until(lambda: len(studio.asked) == 1)
    assert Verdicts(folder)._loaded().trials == {}


def test_a_contest_that_ends_its_worker_is_held_once_more(studio: Studio) -> None:
    studio.answers = [DIED]
    studio.picture()
    assert (studio.picture(), len(studio.asked), _trials(studio)) == (["quick"], 2, {})


ENDED_TWICE = "the program ended twice while this was tried"


def test_a_contest_that_ends_two_workers_leaves_plain_torch(studio: Studio, folder: Path) -> None:
    studio.answers = [DIED, DIED]
    studio.picture()
    assert studio.tuner.verdict(SCALED, ARGS) == Verdict(TORCH, ENDED_TWICE)
    again = Studio(folder)
    assert (again.picture(), again.asked, again.case.reason) == ([TORCH], [], ENDED_TWICE)


def test_ends_in_two_processes_are_counted(studio: Studio, folder: Path) -> None:
    studio.verdicts.lose_trial(_name(studio))
    again = Studio(folder)
    again.answers = [DIED]
    again.picture()
    assert (again.case.reason, len(again.asked)) == (ENDED_TWICE, 1)


def _name(studio: Studio) -> str:
    """That of the verdict on the usual call."""
    studio.is_busy = True
    studio.code()
    (name,) = studio.tuner._cases
    studio.tuner.cancel()
    return name


def test_what_ends_a_worker_costs_no_other_contest(studio: Studio) -> None:
    studio.answers = [DIED, QUICK, DIED]
    studio.picture(ARGS, LARGER)
    assert studio.picture(ARGS, LARGER) == [TORCH, "quick"]


def test_what_may_be_otherwise_next_time_is_not_kept(studio: Studio, folder: Path) -> None:
    studio.answers = [LEFT]
    studio.picture()
    studio.picture()
    assert (studio.case.reason, len(studio.asked)) == (LEFT.verdict.reason, 1)
    again = Studio(folder)
    again.picture()
    assert len(again.asked) == 1


def test_without_a_process_nothing_is_tuned_and_the_report_says_why(studio: Studio) -> None:
    studio.contests.fault = "no process"
    assert studio.picture() == [TORCH]
    assert (studio.tuner.report().fault, studio.case.reason, studio.tuner.pending) == (
        "no process",
        "no process",
        0,
    )


# What fails when it runs


def failed(studio: Studio) -> None:
    """The winner fails in a picture."""
    studio.picture()
    studio.tuner.apply()
    found = studio.choices.implementation(SCALED, ARGS)
    assert found is not None
    studio.choices.note_failure(SCALED, found, RuntimeError("no kernel image"))


def test_a_winner_that_fails_is_given_up_within_the_picture(studio: Studio) -> None:
    failed(studio)
    before = studio.choices
    assert (studio.code(), studio.choices is before) == (TORCH, True)


def test_a_winner_that_fails_is_given_up_until_the_next_start(studio: Studio, folder: Path) -> None:
    failed(studio)
    assert (studio.picture(), studio.picture()) == ([TORCH], [TORCH])
    assert studio.case.reason == "quick failed when it ran: RuntimeError: no kernel image"
    assert Studio(folder).picture() == ["quick"]


def test_a_failure_changes_the_choices_between_pictures(studio: Studio) -> None:
    failed(studio)
    before, version = studio.choices, studio.tuner.version
    assert studio.picture() == [TORCH]
    assert (studio.choices is before, studio.tuner.version == version) == (False, False)


# Ends


def test_what_is_cancelled_is_wished_for_again_when_it_is_called_again(studio: Studio) -> None:
    studio.is_busy = True
    studio.code()
    studio.tuner.cancel()
    assert studio.tuner.pending == 0
    studio.code()
    assert studio.tuner.pending == 1


def test_clearing_forgets_what_was_found_here_and_on_disk(studio: Studio, folder: Path) -> None:
    studio.picture(ARGS, LARGER)
    assert studio.tuner.clear() == 2
    assert (len(Verdicts(folder)), studio.tuner.report().cases) == (0, [])
    assert studio.picture() == [TORCH]
    assert len(studio.asked) == 3


def test_what_holds_goes_on_after_clearing_until_the_next_picture(studio: Studio) -> None:
    studio.picture()
    studio.tuner.apply()
    studio.tuner.clear()
    assert studio.code() == "quick"


def test_an_answer_that_comes_after_clearing_is_not_kept(studio: Studio) -> None:
    name = _name(studio)
    studio.tuner._done(name, QUICK)
    assert studio.verdicts.get(name, codes=None) is None


def test_a_warm_up_hears_what_is_left(studio: Studio) -> None:
    studio.is_busy, left = True, []
    studio.code(ARGS)
    studio.code(LARGER)
    assert studio.tuner.finish(ENOUGH_S, left.append)
    assert (left[0], left[-1]) == (2, 0)


def test_a_tuner_on_its_own_shares_the_contests_of_the_process() -> None:
    tuner = Tuner(Verdicts(None), Activity(), lambda: False, lambda device: False)
    assert tuner._contests is tuner_module.contests_of_this_process()


# The report


def test_a_case_is_reported_before_and_after_it_is_measured(studio: Studio) -> None:
    studio.is_busy = True
    studio.code()
    assert studio.case == TuningCase("scaled", "1x4x8x8", "float32", "cpu", TORCH, TORCH, "to be measured")
    studio.picture()
    assert (studio.case.chosen, studio.case.next_chosen) == (TORCH, "quick")


def test_a_case_in_effect_says_what_was_measured(studio: Studio) -> None:
    studio.picture()
    studio.tuner.apply()
    verdict = QUICK.verdict
    assert studio.case == TuningCase(
        "scaled", "1x4x8x8", "float32", "cpu", "quick", "quick", verdict.reason, 0.0, 2e-6, verdict.ms
    )


def test_the_seconds_of_contests_are_reported(studio: Studio) -> None:
    studio.picture()
    assert studio.tuner.report().seconds > 0
    assert (studio.tuner.report().pending, studio.tuner.report().holding) == (0, None)


def test_an_operator_that_ends_the_program_is_never_run_here(studio: Studio) -> None:
    assert studio.code(operator=ENDING) == TORCH
