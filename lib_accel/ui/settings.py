"""The settings page, generated from Options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import gradio as gr

from lib_accel.options import Options

# By the type of an option's default: a component and its arguments.
_COMPONENTS: dict[Any, tuple[Any, dict[str, Any]]] = {
    bool: (gr.Checkbox, {}),
    int: (gr.Number, {"precision": 0, "minimum": 0}),
    str: (gr.Dropdown, {}),
}


class Setting(NamedTuple):
    """One setting, with what the webui's OptionInfo takes."""

    option: str  # name of the field of Options
    default: Any
    label: str
    component: Any
    component_args: dict[str, Any]
    help: str


def settings() -> Iterator[Setting]:
    """One setting for each option."""
    for option in fields(Options):
        component, arguments = _COMPONENTS[type(option.default)]
        told = option.metadata
        if told["choices"]:
            arguments = arguments | {"choices": list(told["choices"])}
        if told["slider"]:
            maximum, step = told["slider"]
            component, arguments = gr.Slider, {"minimum": 0, "maximum": maximum, "step": step}
        yield Setting(option.name, option.default, told["label"], component, arguments, told["help"])
