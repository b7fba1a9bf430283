"""The accordion in the txt2img and img2img tabs: on or off for this generation, and a line of status."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr


def accordion(
    make_accordion: Callable[..., Any], *, enabled: bool, tab: str, status: Callable[[], str]
) -> list[Any]:
    """Builds the accordion and returns the components that are a generation's arguments: switch, compare.

    make_accordion: the webui's InputAccordion, whose head is a checkbox; tab: "txt2img" or "img2img".
    """
    with make_accordion(enabled, label="Accel", elem_id=f"accel_{tab}_enabled") as switch:
        with gr.Row(elem_classes=["accel-status-row"]):
            line = gr.HTML(_line(status()), elem_id=f"accel_{tab}_status")
            refresh = gr.Button("\U0001f504", elem_id=f"accel_{tab}_refresh", elem_classes=["tool"])
        compare = gr.Checkbox(
            False,
            label="Compare with stock",
            info="draws each picture twice, with and without, and shows both, the difference x20 and the "
            "times",
            elem_id=f"accel_{tab}_compare",
        )
        # Queued, it would wait for the picture that is being drawn.
        refresh.click(
            fn=lambda: _line(status()), inputs=[], outputs=[line], queue=False, show_progress="hidden"
        )
    return [switch, compare]


def _line(status: str) -> str:
    return f'<p class="accel-status">{html.escape(status)}</p>'
