"""The settings page, generated from Options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import gradio as gr

from lib_accel.options import Options


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
        choices = list(option.metadata["choices"])
        component = gr.Radio if choices else gr.Checkbox
        args = {"choices": choices} if choices else {}
        yield Setting(
            option.name, option.default, option.metadata["label"], component, args, option.metadata["help"]
        )
