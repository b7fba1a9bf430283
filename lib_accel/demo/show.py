"""Runs all of the demo: the cases with their pictures, and the growth with the number of LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lib_accel.bench.environment import environment
from lib_accel.bench.progress import Progress
from lib_accel.demo.cases import PAIRS, Case, Outcome, cases_of, outcome_of
from lib_accel.demo.growth import COUNTS, Point, grow
from lib_accel.demo.request import Request
from lib_accel.demo.scene import Scene, scene_of
from lib_accel.demo.stage import SEED, Stage


@dataclass(frozen=True)
class Show:
    """What the demo found out."""

    settings: dict[str, Any]  # what was shown, with names instead of paths
    outcomes: Sequence[Outcome]
    hint: Image.Image | None  # what the ControlNet was shown
    points: Sequence[Point]
    environment: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """All but the pictures, as plain values."""
        return {
            "settings": self.settings,
            "cases": [outcome.as_dict() for outcome in self.outcomes],
            "lora_growth": [point.as_dict() for point in self.points],
            "environment": self.environment,
        }


def show(request: Request) -> Show:
    """Loads what was asked for and runs it on both sides. Raises AccelError for what cannot be used."""
    scene = scene_of(request)
    cases = cases_of(len(scene.loras), is_controlled=scene.controlnet is not None)
    with Progress(len(cases) + 2 * len(COUNTS)) as progress:
        outcomes = _outcomes(scene, cases, request, progress)
        points = _points(scene, request.prompts[0], progress)
    device = scene.pipe.unet.device
    return Show(_settings(scene, request), outcomes, scene.hint, points, environment(device))


def _outcomes(scene: Scene, cases: Sequence[Case], request: Request, progress: Progress) -> list[Outcome]:
    outcomes = []
    stages = {False: Stage(scene.pipe, scene.asked, scene.loras)}
    if scene.controlnet is not None:
        stages[True] = Stage(*scene.controlled(), scene.loras)
    for case in cases:
        progress.begin(case.name)
        stage = stages[case.is_controlled]
        try:
            outcomes.append(outcome_of(stage, case, request.steps, request.prompts))
        finally:
            stage.leave()  # both stages have the same modules
    return outcomes


def _points(scene: Scene, prompt: str, progress: Progress) -> list[Point]:
    stage = Stage(scene.pipe, scene.asked, scene.many)
    try:
        return grow(stage, COUNTS, prompt, progress.begin)
    finally:
        stage.leave()


def _settings(scene: Scene, request: Request) -> dict[str, Any]:
    return {
        "model": scene.model,
        "pipeline": type(scene.pipe).__name__,
        "dtype": str(scene.pipe.unet.dtype).removeprefix("torch."),
        "loras": [{"name": lora.name, "scale": lora.scale} for lora in scene.loras],
        "lora_growth": scene.many_are,
        "controlnet": None if scene.controlnet is None else _name(request),
        "prompts": list(request.prompts),
        "width": scene.asked["width"],
        "height": scene.asked["height"],
        "steps": request.steps,
        "seed": SEED,
        "pairs": PAIRS,
    }


def _name(request: Request) -> str:
    return "the embedded one" if request.controlnet is None else request.controlnet.name
