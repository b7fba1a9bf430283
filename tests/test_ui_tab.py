"""The tab's buttons: what each calls, with what, and what it renews."""

from __future__ import annotations

import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from lib_accel.ui.page import Page


class Recorder:
    """Stands for the actions: keeps what was called, and gives a status."""

    def __init__(self) -> None:
        self.called: list[tuple[Any, ...]] = []
        self.status: dict[str, Any] = {"enabled": True, "summary": "fine"}

    def doing(self, name: str) -> Any:
        def act(*values: Any) -> str:
            self.called.append((name, *values))
            return f"<{name}>"

        return act


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def made(fakes: SimpleNamespace, recorder: Recorder) -> dict[str, Any]:
    """The tab's components by their ids."""
    module = importlib.import_module("lib_accel.ui.tab")
    names = [field.name for field in dataclasses.fields(module.Actions)]
    actions = {name: recorder.doing(name) for name in names} | {"status": lambda: recorder.status}
    module.tab(module.Actions(**actions))
    return {each.kwargs["elem_id"]: each for each in fakes.gradio.made if "elem_id" in each.kwargs}


def _press(button: Any, *values: Any) -> Any:
    return button.clicked["fn"](*values)


@pytest.mark.parametrize(
    ("button", "typed", "called"),
    [
        ("accel_warm_up", (512, 768.0, 2), ("warm_up", 512, 768, 2)),
        ("accel_benchmark_start", (511.6, 64, 8.0), ("benchmark", 512, 64, 8)),
        ("accel_warm_up", (None, 64, 1), ("warm_up", 0, 64, 1)),
        ("accel_cancel", (), ("cancel",)),
        ("accel_clear", (), ("clear_cache",)),
        ("accel_off_yes", (), ("turn_off_until_restart",)),
    ],
)
def test_a_button_does_its_action_with_whole_numbers(
    made: dict[str, Any], recorder: Recorder, button: str, typed: tuple[Any, ...], called: tuple[Any, ...]
) -> None:
    _press(made[button], *typed)
    assert recorder.called == [called]
    assert all(type(value) is int for value in recorder.called[0][1:])


def test_a_button_shows_its_line_escaped_and_renews_the_page(made: dict[str, Any]) -> None:
    event = made["accel_warm_up"].clicked
    line, headline, *_ = event["fn"](512, 512, 1)
    assert "&lt;warm_up&gt;" in line
    assert "fine" in headline


@pytest.mark.parametrize(
    "button",
    [
        "accel_warm_up",
        "accel_benchmark_start",
        "accel_cancel",
        "accel_clear",
        "accel_off_yes",
        "accel_refresh",
    ],
)
def test_a_button_gives_as_many_values_as_it_has_places_for(made: dict[str, Any], button: str) -> None:
    event = made[button].clicked
    assert len(event["fn"](*(1 for _ in event["inputs"]))) == len(event["outputs"])


@pytest.mark.parametrize("button", ["accel_warm_up", "accel_benchmark_start", "accel_refresh", "accel_copy"])
def test_no_button_waits_for_the_picture_that_is_being_drawn(made: dict[str, Any], button: str) -> None:
    assert made[button].clicked["queue"] is False


def test_off_asks_first_and_does_nothing_by_itself(made: dict[str, Any], recorder: Recorder) -> None:
    assert made["accel_really"].kwargs["visible"] is False
    assert _press(made["accel_off"]) == {"visible": True}
    assert _press(made["accel_off_no"]) == {"visible": False}
    assert recorder.called == []


def test_a_benchmark_never_begins_by_itself(made: dict[str, Any], recorder: Recorder) -> None:
    _press(made["accel_refresh"])
    assert recorder.called == []


def test_cancel_is_there_while_something_runs(made: dict[str, Any], recorder: Recorder) -> None:
    assert made["accel_cancel"].kwargs["visible"] is False
    assert _press(made["accel_refresh"])[-1] == {"visible": False}
    recorder.status = {"task": {"name": "warm-up", "is_running": True}}
    assert _press(made["accel_refresh"])[-1] == {"visible": True}


@pytest.mark.parametrize("part", Page._fields)
def test_each_part_of_the_page_is_a_component_that_is_renewed(made: dict[str, Any], part: str) -> None:
    assert made[f"accel_{part}"] in made["accel_refresh"].clicked["outputs"]


def test_the_script_hears_when_the_page_was_renewed_and_what_to_copy(made: dict[str, Any]) -> None:
    (renewed,), (copy,) = made["accel_refresh"].event.followed, made["accel_copy"].event.followed
    assert "accel-renewed" in renewed["_js"]
    assert "accel-copy" in copy["_js"]
    assert copy["inputs"] == [made["accel_report"]]


def test_the_report_is_shown_as_the_text_it_is(made: dict[str, Any]) -> None:
    assert _press(made["accel_copy"]) == "<report>"
    assert made["accel_copy"].clicked["outputs"] == [made["accel_report"]]


def test_sizes_are_what_the_models_take(made: dict[str, Any]) -> None:
    for name in ("accel_width", "accel_height"):
        sizes = {key: made[name].kwargs[key] for key in ("minimum", "maximum", "step", "value")}
        assert sizes == {"minimum": 64, "maximum": 2048, "step": 8, "value": 512}
