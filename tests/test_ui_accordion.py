"""The accordion and the settings page, as the webui is handed them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def arguments(fakes: SimpleNamespace) -> list[Any]:
    module = importlib.import_module("lib_accel.ui.accordion")
    made: list[Any] = module.accordion(
        fakes.ui_components.InputAccordion, enabled=True, tab="img2img", status=lambda: "<b>fast</b>"
    )
    return made


def test_a_generation_is_told_of_the_switch_and_the_comparison(arguments: list[Any]) -> None:
    switch, compare = arguments
    assert switch.kwargs["elem_id"] == "accel_img2img_enabled"
    assert (compare.args, compare.kwargs["elem_id"]) == ((False,), "accel_img2img_compare")


def test_the_comparison_says_what_it_costs(arguments: list[Any]) -> None:
    assert "twice" in arguments[1].kwargs["info"]


def test_the_line_of_status_is_escaped(fakes: SimpleNamespace, arguments: list[Any]) -> None:
    (line,) = (each for each in fakes.gradio.made if type(each).__name__ == "HTML")
    assert "&lt;b&gt;fast&lt;/b&gt;" in line.args[0]


def test_an_option_with_a_slider_is_a_slider_from_zero(fakes: SimpleNamespace) -> None:
    made = {each.option: each for each in importlib.import_module("lib_accel.ui.settings").settings()}
    kept = made["lora_cache_mib"]
    assert kept.component is fakes.gradio.Slider
    assert kept.component_args == {"minimum": 0, "maximum": 8192, "step": 64}


def test_a_choice_and_a_switch_stay_what_they_are(fakes: SimpleNamespace) -> None:
    made = {each.option: each for each in importlib.import_module("lib_accel.ui.settings").settings()}
    assert made["code"].component is fakes.gradio.Dropdown
    assert made["enabled"].component is fakes.gradio.Checkbox
