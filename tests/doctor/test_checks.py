"""One row a check, whatever happens inside it; and what is enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lib_accel.doctor.checks import CHECKS, examine, is_enough
from lib_accel.doctor.facts import Trial
from tests.doctor.machines import BARE, GOOD, NO_GPU, BrokenMachine, FakeMachine

SUBJECTS = (
    "Python",
    "torch",
    "device",
    "code: direct",
    "code: compiled",
    "launch: eager",
    "launch: graph",
    "Triton",
    "C++ compiler",
    "xformers",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "cache folder",
    "webui",
)


def test_every_subject_has_one_row() -> None:
    assert tuple(row.what for row in examine(GOOD)) == SUBJECTS


def test_a_check_that_crashes_is_a_row_with_the_error() -> None:
    rows = examine(BrokenMachine(OSError("two\n  lines")))
    crashed = [row for row in rows if row.what not in ("code: compiled", "launch: graph")]
    assert len(crashed) == len(SUBJECTS) - 2
    assert {row.verdict.finding for row in crashed} == {"could not be found out: OSError: two lines"}


def test_a_crash_without_a_message_names_its_type() -> None:
    finding = examine(BrokenMachine(AssertionError()))[0].verdict.finding
    assert finding == "could not be found out: AssertionError"


def test_one_crash_leaves_the_other_rows_alone() -> None:
    def crash(machine: object) -> None:
        raise KeyError("lost")

    rows = examine(GOOD, {"first": crash, "Python": CHECKS["Python"]})
    assert [row.verdict.status for row in rows] == ["no", "yes"]


def test_an_interruption_is_no_finding() -> None:
    with pytest.raises(KeyboardInterrupt):
        examine(BrokenMachine(KeyboardInterrupt()))


@pytest.mark.parametrize(("machine", "enough"), [(GOOD, True), (NO_GPU, True), (BARE, False)])
def test_direct_code_is_what_it_takes(machine: FakeMachine, enough: bool) -> None:
    assert is_enough(examine(machine)) is enough


def test_direct_code_that_differs_is_not_enough() -> None:
    wrong = replace(GOOD, trials=(Trial("cpu", "float32", 0.1, 1e-5),))
    assert not is_enough(examine(wrong))
