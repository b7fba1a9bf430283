"""How well a pipeline does what it is told: 200 held-out prompts, judged by plain image analysis."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lib_accel.demo.embedded import GUIDANCE
from lib_accel.demo.train.captions import caption, shapeless
from lib_accel.demo.train.drawing import STYLES, Picture, draw, hint
from lib_accel.demo.train.judge import edge_overlap
from lib_accel.demo.train.scene import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RADII,
    SHAPES,
    SIDE,
    SUBJECT,
    Scene,
    draw_lots,
    held_out,
    single,
)
from lib_accel.demo.train.tally import Tally, tally_of

STEPS = 20
_AT_ONCE = 50
_FIRST_SEED = 1000
_DRAWINGS = 300


class Studio(Protocol):
    """Pipelines to be judged: stock, or accelerated."""

    pipe: Any

    def set_lora(self, name: str | None) -> None:
        """Gives the pipeline one of our LoRAs at full strength, or none."""

    def with_controlnet(self) -> Any:
        """The pipeline with our ControlNet, without LoRA."""


@dataclass(frozen=True)
class Scores:
    """What came of one studio: pictures and tallies by task, the mean overlap of edges."""

    pictures: Mapping[str, Sequence[Picture]]
    tallies: Mapping[str, Tally]
    overlap: Mapping[str, float]


def score(studio: Studio) -> Scores:
    """All figures of a studio. Some minutes on one core."""
    scenes, subjects = held_out(), subject_scenes()
    drawn = [draw(scene) for scene in scenes]
    told = [shapeless(scene) for scene in scenes]
    made = {"base": generate(studio.pipe, [caption(scene) for scene in scenes])}
    made["control_without"] = generate(studio.pipe, told)
    made["zorb_without"] = generate(studio.pipe, [caption(scene) for scene in subjects])
    studio.set_lora("outline")
    made["outline"] = generate(studio.pipe, [caption(scene) for scene in scenes])
    studio.set_lora("zorb")
    made["zorb"] = generate(studio.pipe, [caption(scene) for scene in subjects])
    made["zorb_others"] = generate(studio.pipe, [caption(scene) for scene in scenes])
    studio.set_lora(None)
    made["control"] = generate(studio.with_controlnet(), told, [hint(picture) for picture in drawn])
    tallies = {
        name: tally_of(
            subjects if name in ("zorb", "zorb_without") else scenes,
            pictures,
            style="outline" if name == "outline" else "filled",
        )
        for name, pictures in made.items()
    }
    overlap = {name: _mean_overlap(drawn, made[name]) for name in ("control", "control_without")}
    return Scores(made, tallies, overlap)


def _mean_overlap(wanted: Sequence[Picture], made: Sequence[Picture]) -> float:
    return float(np.mean([edge_overlap(one, other) for one, other in zip(wanted, made, strict=True)]))


def generate(
    pipe: Any,
    prompts: Sequence[str],
    hints: Sequence[Picture] | None = None,
    *,
    first_seed: int = _FIRST_SEED,
    steps: int = STEPS,
) -> list[Picture]:
    """A picture of 64x64 for each prompt, with the pipeline's scheduler, each from a seed of its own."""
    pictures: list[Picture] = []
    for first in tqdm(range(0, len(prompts), _AT_ONCE), desc="generate", mininterval=5):
        part = list(prompts[first : first + _AT_ONCE])
        seeds = range(first_seed + first, first_seed + first + len(part))
        shown = {}
        if hints is not None:
            shown["image"] = [Image.fromarray(picture) for picture in hints[first : first + _AT_ONCE]]
        made = pipe(
            part,
            width=SIDE,
            height=SIDE,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **shown,
        ).images
        pictures += list((made * 255).round().astype(np.uint8))
    return pictures


def judge_the_judge() -> Tally:
    """The judge's answers about drawings made to order, so that its own errors are known."""
    lot = random.Random(99)
    tally = Tally()
    for style in STYLES:
        scenes = [draw_lots(lot, (*SHAPES, SUBJECT)) for _ in range(_DRAWINGS // len(STYLES))]
        tally.join(tally_of(scenes, [draw(scene, style) for scene in scenes], style=style))
    return tally


def subject_scenes() -> list[Scene]:
    """54 scenes of the subject alone: each colour, size and background, at a place by lot."""
    lot = random.Random(5)
    return [
        single(colour, SUBJECT, size, lot.choice(list(PLACES)), ground)
        for colour in COLOURS
        for size in RADII
        for ground in BACKGROUNDS
    ]
