"""The tab "Accel": the live page, and the buttons that prepare, measure, forget and switch off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from lib_accel.painter import BATCHES, SIDE_STEP, SIDES, TIMED_STEPS
from lib_accel.ui.markup import text
from lib_accel.ui.page import Page, page
from lib_accel.ui.task import is_running

_JS = "_js" if gr.__version__.startswith("3.") else "js"
# Queued, an event would wait for the picture that is being drawn.
_AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_TELL = (
    "(...told) => {{ document.dispatchEvent(new CustomEvent('{name}', {{detail: told[0]}})); return []; }}"
)
_REALLY = "Until it is restarted, the webui will draw all pictures with its own code."


@dataclass(frozen=True)
class Actions:
    """What the tab's buttons do; those that return text say in one line what happened."""

    status: Callable[[], Mapping[str, Any]]  # as GET /accel/v1/status; empty if there is none
    report: Callable[[], str]  # text to copy
    warm_up: Callable[[int, int, int], str]  # width and height in pixels, batch size; returns at once
    benchmark: Callable[[int, int, int], str]  # width and height in pixels, steps; returns at once
    cancel: Callable[[], str]
    clear_cache: Callable[[], str]
    turn_off_until_restart: Callable[[], str]


class _Controls(NamedTuple):
    """The components that the user works, and the line that answers."""

    width: Any
    height: Any
    batch_size: Any
    steps: Any
    warm_up: Any
    benchmark: Any
    cancel: Any
    clear: Any
    off: Any
    really: Any
    yes: Any
    no: Any
    message: Any


def tab(actions: Actions) -> Any:
    """The tab's content, a gr.Blocks; javascript/accel.js renews it as long as it is looked at."""
    status = actions.status()
    first = page(status)
    parts: dict[str, Any] = {}
    with gr.Blocks(analytics_enabled=False) as blocks, gr.Column(elem_id="accel_tab"):
        parts["headline"] = _part(first, "headline")
        with gr.Row(elem_id="accel_main"):
            with gr.Column(scale=3, min_width=420):
                parts["models"] = _part(first, "models")
            with gr.Column(scale=2, min_width=420, elem_id="accel_controls"):
                controls, parts["task"] = _controls(first, is_running(status))
        for name in ("pictures", "benchmark", "memory", "launches", "graphs", "tuning", "settings"):
            parts[name] = _part(first, name)
        _report(actions)
        refresh = gr.Button("Refresh", elem_id="accel_refresh", visible=False)
        _connect(actions, controls, refresh, [*(parts[name] for name in Page._fields), controls.cancel])
    return blocks


def _part(shown: Page, name: str) -> Any:
    return gr.HTML(getattr(shown, name), elem_id=f"accel_{name}", elem_classes=["accel-part"])


def _controls(first: Page, is_busy: bool) -> tuple[_Controls, Any]:
    """The controls, and the part of the page that stands among them: the running work."""
    sizes = {"minimum": SIDES[0], "maximum": SIDES[1], "step": SIDE_STEP, "value": 512}
    with gr.Row():
        width = gr.Slider(label="Width", elem_id="accel_width", **sizes)
        height = gr.Slider(label="Height", elem_id="accel_height", **sizes)
    with gr.Row():
        batch_size = gr.Slider(
            label="Batch size of the warm-up",
            minimum=BATCHES[0],
            maximum=BATCHES[1],
            step=1,
            value=1,
            elem_id="accel_batch_size",
        )
        steps = gr.Slider(
            label="Steps of the benchmark",
            minimum=TIMED_STEPS[0],
            maximum=TIMED_STEPS[1],
            step=1,
            value=8,
            elem_id="accel_steps",
        )
    with gr.Row(elem_classes=["accel-buttons"]):
        warm_up = gr.Button("Warm up", variant="primary", elem_id="accel_warm_up")
        benchmark = gr.Button("Benchmark", elem_id="accel_benchmark_start")
        cancel = gr.Button("Cancel", variant="stop", elem_id="accel_cancel", visible=is_busy)
    task = _part(first, "task")
    with gr.Row(elem_classes=["accel-buttons"]):
        clear = gr.Button("Clear choices", elem_id="accel_clear")
        off = gr.Button("Off until restart", elem_id="accel_off")
    with gr.Column(visible=False, elem_id="accel_really") as really:
        gr.HTML(f'<p class="accel-stage">{text(_REALLY)}</p>')
        with gr.Row(elem_classes=["accel-buttons"]):
            yes = gr.Button("Yes, turn it off", variant="stop", elem_id="accel_off_yes")
            no = gr.Button("Keep it on", elem_id="accel_off_no")
    message = gr.HTML("", elem_id="accel_message", elem_classes=["accel-part"])
    buttons = (warm_up, benchmark, cancel, clear, off, really, yes, no)
    return _Controls(width, height, batch_size, steps, *buttons, message), task


def _connect(actions: Actions, controls: _Controls, refresh: Any, outputs: list[Any]) -> None:
    """Lets each button do its action, tell its line, and renew the page."""

    def answering(act: Callable[..., str]) -> Callable[..., list[Any]]:
        return lambda *values: [_message(act(*map(_whole, values))), *_shown(actions)]

    def off() -> list[Any]:
        return [gr.update(visible=False), _message(actions.turn_off_until_restart()), *_shown(actions)]

    to = [controls.message, *outputs]
    size = [controls.width, controls.height]
    for button, act, inputs in (
        (controls.warm_up, actions.warm_up, [*size, controls.batch_size]),
        (controls.benchmark, actions.benchmark, [*size, controls.steps]),
        (controls.cancel, actions.cancel, []),
        (controls.clear, actions.clear_cache, []),
    ):
        button.click(fn=answering(act), inputs=inputs, outputs=to, **_AT_ONCE)
    for button, is_asked in ((controls.off, True), (controls.no, False)):
        button.click(fn=_revealing(is_asked), inputs=[], outputs=[controls.really], **_AT_ONCE)
    controls.yes.click(fn=off, inputs=[], outputs=[controls.really, *to], **_AT_ONCE)
    renewed = refresh.click(fn=lambda: _shown(actions), inputs=[], outputs=outputs, **_AT_ONCE)
    renewed.then(fn=None, inputs=[], outputs=[], **{_JS: _TELL.format(name="accel-renewed")})


def _shown(actions: Actions) -> list[Any]:
    """The parts of the page as they are now, and whether there is something to cancel."""
    status = actions.status()
    return [*page(status), gr.update(visible=is_running(status))]


def _revealing(is_asked: bool) -> Callable[[], Any]:
    return lambda: gr.update(visible=is_asked)


def _message(line: str) -> str:
    return f'<p class="accel-message" role="status">{text(line)}</p>' if line else ""


def _whole(value: Any) -> int:
    """A slider's value; what is typed beside it may be a fraction, or nothing."""
    return round(value or 0)


def _report(actions: Actions) -> None:
    """A button that copies the report, and the report itself for where the browser forbids that."""
    with gr.Row(elem_id="accel_report_row"):
        copy = gr.Button("Copy report", elem_id="accel_copy", scale=0, min_width=160)
        box = gr.Textbox(
            label="Report",
            placeholder="Versions, settings and this page as text, for a bug report. Nothing is sent.",
            lines=1,
            max_lines=16,
            interactive=False,
            show_copy_button=True,
            elem_id="accel_report",
        )
    box.do_not_save_to_config = True  # the webui would keep it as a default (modules/ui_loadsave.py)
    copied = copy.click(fn=actions.report, inputs=[], outputs=[box], **_AT_ONCE)
    copied.then(fn=None, inputs=[box], outputs=[], **{_JS: _TELL.format(name="accel-copy")})
