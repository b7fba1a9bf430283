"""The work that a button began: how far it is, or how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_accel.ui.markup import amount, duration, empty, percent, progress, text


def is_running(status: Mapping[str, Any]) -> bool:
    """Whether a warm-up or a benchmark runs now."""
    return bool((status.get("task") or {}).get("is_running"))


def task(status: Mapping[str, Any]) -> str:
    """The running work with its bar, the latest one's outcome, or that there is none."""
    work = status.get("task")
    if not work:
        return f'<div class="accel-task">{empty("nothing is running")}</div>'
    name = text(str(work.get("name", "")).capitalize())
    if work.get("is_running"):
        return _running(work, name)
    error = work.get("error")
    words = (
        f'<span class="accel-error">{text(error)}</span>' if error else text(work.get("outcome") or "done")
    )
    took = f'<span class="accel-note">{duration(work.get("elapsed_s"))}</span>'
    head = f'<p class="accel-facts"><b>{name}</b>{took}</p>'
    return f'<div class="accel-task">{head}<p class="accel-stage">{words}</p></div>'


def _running(work: Mapping[str, Any], name: str) -> str:
    left = work.get("left_s")
    times = [f"{percent(work.get('done'), 1):.0f} %", duration(work.get("elapsed_s"))]
    if left is not None:
        times.append(f"about {duration(amount(left))} left")
    said = "".join(f"<span>{each}</span>" for each in times)
    return (
        '<div class="accel-task" data-running="1">'
        f'<p class="accel-facts"><b>{name}</b>{said}</p>{progress(work.get("done"), name)}'
        f'<p class="accel-stage">{text(work.get("stage", ""))}</p></div>'
    )
