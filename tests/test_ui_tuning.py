"""The card of operators: what runs, how much was gained, and how the weights of models lie."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lib_accel.ui.tuning import tuning

_LONG = "Triton after the convolution, Line(block=1024, warps=4)"


def _case(**changes: Any) -> dict[str, Any]:
    case = {"operator": "group norm", "size": "2x320x64x64", "dtype": "float16", "device": "cuda:0"}
    case |= {"chosen": "torch", "next_chosen": _LONG, "reason": "31 % less time than torch"}
    return case | {"ms": {"torch": 0.5, _LONG: 0.345, "other": 0.4}} | changes


def _shown(*cases: dict[str, Any], advice: Any = None, **found: Any) -> str:
    return tuning({"tuning": {"cases": list(cases)} | found, "advice": advice or {}})


def _cells(shown: str) -> list[list[str]]:
    """The table's cells by row, as text."""
    rows = shown.split("<tbody>")[1].split("</tbody>")[0].split("</tr>")[:-1]
    return [[re.sub("<[^>]+>", "", cell) for cell in row.split("</td>")[:-1]] for row in rows]


def test_a_row_tells_what_runs_and_what_it_gains() -> None:
    case = _case(difference=3e-4, tolerance=2e-3)
    size, gain = "2x320x64x64 float16 cuda:0", "31 % less time than torch"
    assert _cells(_shown(case)) == [
        ["group norm", size, "torch", _LONG, "0.500", "0.345", "3e-04 of 2e-03", gain]
    ]


def test_what_goes_on_is_not_named_twice() -> None:
    assert _cells(_shown(_case(chosen=_LONG)))[0][2:4] == [_LONG, "the same"]


def test_where_torch_stays_the_next_best_time_is_told() -> None:
    shown = _shown(_case(next_chosen="torch", ms={"torch": 0.3, "a": 0.5, "b": 0.4}))
    assert _cells(shown)[0][4:6] == ["0.300", "0.400"]


def test_what_is_to_be_measured_has_dashes_for_times() -> None:
    shown = _shown(_case(next_chosen="torch", ms={}, reason="to be measured"), pending=1)
    assert set(_cells(shown)[0][4:7]) == {"–"}  # noqa: RUF001
    assert "<span>0 measured</span><span>0 faster than torch</span><span>1 to be measured</span>" in shown


def test_what_takes_most_time_is_at_the_top_and_the_rest_is_counted() -> None:
    shown = _shown(*(_case(operator=f"number {ms}", ms={"torch": ms}) for ms in range(300)))
    rows = _cells(shown)
    assert [rows[0][0], rows[-1][0], len(rows)] == ["number 299", "number 100", 200]
    assert "<b>300</b>" in shown
    assert "100 more" in shown


def test_long_names_stand_where_lines_break() -> None:
    assert f'<span class="accel-long">{_LONG}</span>' in _shown(_case())


def test_a_fault_comes_with_what_to_do() -> None:
    shown = _shown(fault="no process", advice={"no process": "restart it"})
    assert '<span>no process</span><span class="accel-fix">restart it</span>' in shown
    assert "only GPUs" not in shown


def test_what_was_asked_for_and_is_refused_comes_with_what_to_do() -> None:
    shown = _shown(_case(), refused=["no sage"], advice={"no sage": "install it"})
    told = "<span>attention is not as asked for: no sage</span>"
    assert f'{told}<span class="accel-fix">install it</span>' in shown


@pytest.mark.parametrize(("is_last", "said"), [(True, "channels last"), (False, "channels first")])
def test_the_memory_format_of_a_model_is_told_in_words(is_last: bool, said: str) -> None:
    shown = _shown(_case(), formats=[{"model": "UNet", "is_channels_last": is_last, "reason": "so it is"}])
    assert f"<b>UNet</b><span>{said}</span>" in shown
    assert "so it is" in shown


@pytest.mark.parametrize(("is_last", "is_told"), [(True, True), (False, False)])
def test_without_a_choice_only_what_the_host_has_laid_is_told(is_last: bool, is_told: bool) -> None:
    shown = _shown(formats=[{"model": "UNet", "is_channels_last": is_last, "reason": "so it is"}])
    assert ("so it is" in shown) is is_told
    assert "nothing measured" in shown


@pytest.mark.parametrize(("is_packed", "said"), [(True, "packed"), (False, "apart")])
def test_how_projections_of_a_model_lie_is_told_in_words(is_packed: bool, said: str) -> None:
    lies = {"model": "UNet", "is_packed": is_packed, "packing_reason": "so it is"}
    shown = _shown(_case(), formats=[lies])
    assert f"<b>UNet</b><span>{said}</span>" in shown
    assert "Weights of query, key and value" in shown
    assert "Memory format" not in shown  # of a model without convolutions


def test_an_undecided_format_comes_with_what_to_do() -> None:
    formats = [{"model": "UNet", "is_channels_last": False, "reason": "undecided"}]
    assert "draw a picture" in _shown(_case(), formats=formats, advice={"undecided": "draw a picture"})
