"""Judges the model in a data folder, stock and accelerated, and writes its card and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lib_accel.demo.train import adapters, autoencoder, control, denoiser
from lib_accel.demo.train.card import write_card
from lib_accel.demo.train.drawing import Picture
from lib_accel.demo.train.score import Scores, judge_the_judge, score
from lib_accel.demo.train.studios import AcceleratedStudio, StockStudio

CARD = "MODEL_CARD.md"
_COLUMNS = 20
_LARGER = 2


def judge_and_write(data: Path, work: Path, device: str = "cpu", sheets: Path | None = None) -> None:
    """Writes `data`/MODEL_CARD.md, and with `sheets` a PNG of each task's pictures there.

    What the card says about the training is read from `work`, as far as it is there.
    """
    stock = score(StockStudio(data, device))
    studio = AcceleratedStudio(data, device)
    try:
        accelerated = score(studio)
    finally:
        studio.close()
    sizes = {
        file.relative_to(data).as_posix(): file.stat().st_size for file in sorted(data.rglob("*.safetensors"))
    }
    write_card(
        data / CARD,
        stock=stock,
        accelerated=accelerated,
        judge=judge_the_judge(),
        sizes=sizes,
        trained=_training(work),
    )
    if sheets is not None:
        _write_sheets(sheets, stock)


def _training(work: Path) -> str:
    plans = [
        autoencoder.PLAN,
        autoencoder.DECODER_PLAN,
        denoiser.PLAN,
        *(recipe.plan for recipe in adapters.RECIPES.values()),
        control.PLAN,
    ]
    lines = [
        "## Training\n",
        "| stage | steps | minutes of one core | last loss |",
        "| --- | --- | --- | --- |",
    ]
    for plan in plans:
        file = work / f"{plan.name}.pt"
        if file.is_file():
            state = torch.load(file, weights_only=True, map_location="cpu")
            lines.append(
                f"| {plan.name} | {state['step']} | {state['cpu_s'] / 60:.1f} | {state['loss']:.4f} |"
            )
    lines.append(
        "\n`python -m lib_accel.demo.train run`, again until it says so, then `export` and `score`.\n"
    )
    return "\n".join(lines)


def _write_sheets(folder: Path, scores: Scores) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pictures in scores.pictures.items():
        sheet(pictures).save(folder / f"{name}.png")


def sheet(pictures: Sequence[Picture]) -> Image.Image:
    """The pictures in rows of twenty, twice as large."""
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % _COLUMNS)]
    rows = [np.concatenate(padded[first : first + _COLUMNS], 1) for first in range(0, len(padded), _COLUMNS)]
    image = Image.fromarray(np.concatenate(rows))
    return image.resize((image.width * _LARGER, image.height * _LARGER), Image.Resampling.NEAREST)
