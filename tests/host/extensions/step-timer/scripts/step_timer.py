"""Note when each step of a generation hands its latents to the model and when it has the answer.

GET /step-timer/steps answers the notes, in seconds of a monotonic clock, and forgets them.
"""

import time

from fastapi import FastAPI
from modules import script_callbacks

NOTES: dict[str, list[float]] = {"asked": [], "answered": []}


def note_asked(_params: object) -> None:
    """The sampler calls the model."""
    NOTES["asked"].append(time.perf_counter())


def note_answered(_params: object) -> None:
    """The model has answered."""
    NOTES["answered"].append(time.perf_counter())


def add_route(_demo: object, app: FastAPI) -> None:
    """Add the route."""

    @app.get("/step-timer/steps")
    def steps() -> dict[str, list[float]]:
        answer = {key: list(times) for key, times in NOTES.items()}
        for times in NOTES.values():
            times.clear()
        return answer


script_callbacks.on_cfg_denoiser(note_asked)
script_callbacks.on_cfg_denoised(note_answered)
script_callbacks.on_app_started(add_route)
