"""What the rows on tuned operators make of counts and of a status; needs no webui."""

from __future__ import annotations

from typing import Any

import pytest

from .tuned_steps import OPERATORS, PARTLY, RIVAL, TORCH, miscomputed, mismeasured

BY_RIVALS = {f"{RIVAL} {name}": 3 for name in OPERATORS}
BY_TORCH = {f"{TORCH} {name}": 3 for name in OPERATORS}
MIXED = BY_RIVALS | {f"{TORCH} attention": 1}
BUT_ONE = {name: count for name, count in BY_RIVALS.items() if not name.endswith("attention")}


@pytest.mark.parametrize(("ran", "by"), [(BY_RIVALS, RIVAL), (BY_TORCH, TORCH), (MIXED, PARTLY)])
def test_operators_that_ran_as_they_should_are_no_problem(ran: dict[str, int], by: str) -> None:
    assert miscomputed(ran, by) == []


@pytest.mark.parametrize(
    ("ran", "by"),
    [
        (MIXED, RIVAL),
        (BUT_ONE, RIVAL),
        ({}, RIVAL),
        (MIXED, TORCH),
        ({}, TORCH),
        (BY_RIVALS, PARTLY),
        (BY_TORCH, PARTLY),
    ],
)
def test_operators_that_ran_otherwise_are_a_problem(ran: dict[str, int], by: str) -> None:
    assert miscomputed(ran, by)


def lies(**changes: Any) -> dict[str, Any]:
    """How the weights of a model lie."""
    laid = {"is_channels_last": True, "reason": "", "is_packed": True, "packing_reason": "it is faster"}
    return {"model": "UNet"} | laid | changes


def status(**changes: Any) -> dict[str, Any]:
    """A status in which all is measured."""
    cases = [{"operator": name, "next_chosen": RIVAL, "reason": "50 % less time"} for name in OPERATORS]
    formats = [lies()]
    return {"fault": None, "pending": 0, "refused": [], "cases": cases, "formats": formats} | changes


def test_a_status_in_which_all_is_measured_is_no_problem() -> None:
    assert mismeasured(status(), ("UNet",)) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"fault": "no process"}, "fault: no process"),
        ({"pending": 2}, "pending: 2"),
        ({"cases": status()["cases"][1:]}, "attention is computed by torch only"),
        (
            {"cases": [*status()["cases"], {"operator": "x", "next_chosen": TORCH, "reason": "it differs"}]},
            "x: it differs",
        ),
        ({"formats": [lies(is_channels_last=False, reason="no")]}, "UNet: ['no']"),
        ({"formats": [lies(is_packed=False, packing_reason="it is slower")]}, "UNet: it is slower"),
        ({"formats": []}, "UNet: no such model"),
    ],
)
def test_a_status_in_which_something_is_not_measured_is_a_problem(
    changes: dict[str, Any], problem: str
) -> None:
    assert mismeasured(status(**changes), ("UNet",)) == [problem]
