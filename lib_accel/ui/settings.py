"""The settings page, generated from Options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import gradio as gr

from lib_accel.options import Options

_COMPONENTS: dict[Any, Any] = {bool: gr.Checkbox}  # by the type of an option's default


class Setting(NamedTuple):
    """One setting, with what the webui's OptionInfo takes."""

    option: str  # name of the field of Options
    default: Any
    label: str
    component: Any
    help: str


def settings() -> Iterator[Setting]:
    """One setting for each option."""
    for option in fields(Options):
        component = _COMPONENTS[type(option.default)]
        yield Setting(
            option.name, option.default, option.metadata["label"], component, option.metadata["help"]
        )
