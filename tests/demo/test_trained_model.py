"""The model in the repository draws what it is told, and its LoRAs and ControlNet change what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lib_accel.demo.embedded import DATA, MODEL
from lib_accel.demo.loading import load_pipeline
from lib_accel.demo.train.captions import shapeless
from lib_accel.demo.train.convert import convert
from lib_accel.demo.train.drawing import Picture, draw, hint
from lib_accel.demo.train.judge import Seen, Verdict, edge_overlap, judge
from lib_accel.demo.train.scene import COLOURS, SHAPES, SUBJECT, Scene, single
from lib_accel.demo.train.score import generate
from lib_accel.demo.train.studios import AcceleratedStudio, StockStudio

MIB = 2**20
PROMPTS = ("a red circle on a white background", "a big blue square in the middle on a black background")
HINTED = [single("red", shape, "medium", place, "white") for shape in SHAPES for place in ("left", "top")]


@pytest.fixture(scope="module")
def studio() -> StockStudio:
    return StockStudio()


@pytest.fixture
def accelerated() -> Iterator[AcceleratedStudio]:
    studio = AcceleratedStudio()
    yield studio
    studio.close()


def looks(pipe: Any, *prompts: str) -> list[Seen]:
    """The one thing in each picture."""
    verdicts = [judge(picture) for picture in generate(pipe, prompts)]
    assert [len(verdict.things) for verdict in verdicts] == [1] * len(prompts)
    return [verdict.things[0] for verdict in verdicts]


def test_it_draws_what_the_prompt_says(studio: StockStudio) -> None:
    circle, square = looks(studio.pipe, *PROMPTS)
    assert (circle.colour, circle.shape, circle.style) == ("red", "circle", "filled")
    assert (square.colour, square.shape, square.style) == ("blue", "square", "filled")


def test_the_style_lora_draws_outlines_of_the_same(studio: StockStudio) -> None:
    studio.set_lora("outline")
    circle, square = looks(studio.pipe, *PROMPTS)
    studio.set_lora(None)
    assert (circle.colour, circle.shape, circle.style) == ("red", "circle", "outline")
    assert (square.colour, square.shape, square.style) == ("blue", "square", "outline")


def test_the_subject_lora_gives_its_word_a_meaning(studio: StockStudio) -> None:
    prompts = [f"a medium {colour} zorb in the middle on a white background" for colour in COLOURS]
    without = [judge(picture) for picture in generate(studio.pipe, prompts)]
    studio.set_lora("zorb")
    with_it = [judge(picture) for picture in generate(studio.pipe, prompts)]
    studio.set_lora(None)
    assert hearts(with_it) >= len(COLOURS) - 2
    assert hearts(without) <= 1


def hearts(verdicts: Sequence[Verdict]) -> int:
    """In how many pictures there is one thing, and it is a heart."""
    return sum([thing.shape for thing in verdict.things] == [SUBJECT] for verdict in verdicts)


def overlap(scenes: Sequence[Scene], pictures: Sequence[Picture]) -> float:
    """Mean overlap of edges with the scenes' own."""
    return float(
        np.mean([edge_overlap(draw(scene), made) for scene, made in zip(scenes, pictures, strict=True)])
    )


def test_the_controlnet_follows_its_hints(studio: StockStudio) -> None:
    told, hints = [shapeless(scene) for scene in HINTED], [hint(draw(scene)) for scene in HINTED]
    with_it = overlap(HINTED, generate(studio.with_controlnet(), told, hints))
    without = overlap(HINTED, generate(studio.pipe, told))
    assert with_it > 0.5 > 2 * without


@pytest.mark.parametrize("lora", [None, "outline", "zorb"])
def test_accelerated_pictures_are_the_same(
    studio: StockStudio, accelerated: AcceleratedStudio, lora: str | None
) -> None:
    for each in (studio, accelerated):
        each.set_lora(lora)
    ours, theirs = (
        torch.tensor(generate(each.pipe, PROMPTS, steps=4)[0]).int() for each in (accelerated, studio)
    )
    studio.set_lora(None)
    assert (ours - theirs).abs().max() <= 2


@pytest.mark.parametrize(("lora", "style"), [("outline", "outline"), ("zorb", "filled"), (None, "filled")])
def test_an_accelerated_lora_changes_what_it_says(
    accelerated: AcceleratedStudio, lora: str | None, style: str
) -> None:
    accelerated.set_lora(lora)
    (circle,) = looks(accelerated.pipe, PROMPTS[0])
    assert (circle.colour, circle.shape, circle.style) == ("red", "circle", style)


def test_the_accelerated_controlnet_follows_its_hints(accelerated: AcceleratedStudio) -> None:
    told, hints = [shapeless(scene) for scene in HINTED], [hint(draw(scene)) for scene in HINTED]
    assert overlap(HINTED, generate(accelerated.with_controlnet(), told, hints)) > 0.5


def test_the_single_file_draws_the_same_picture(studio: StockStudio, tmp_path: Path) -> None:
    pipe = load_pipeline(convert(MODEL, tmp_path))
    one, other = (torch.tensor(generate(each, PROMPTS[:1])[0]).int() for each in (pipe, studio.pipe))
    assert (one - other).abs().max() <= 1


def files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in (DATA / folder).rglob("*.safetensors")]


def test_the_model_is_no_larger_than_twelve_mib() -> None:
    assert len(files("model")) == 3
    assert sum(file.stat().st_size for file in files("model")) <= 12 * MIB


def test_loras_and_controlnet_together_are_no_larger_than_four_mib() -> None:
    assert {file.stem for file in files("loras")} == {"outline", "zorb"}
    assert len(files("controlnet")) == 1
    assert sum(file.stat().st_size for file in files("loras", "controlnet")) <= 4 * MIB


@pytest.mark.parametrize("file", files("model", "loras", "controlnet"), ids=lambda file: file.stem)
def test_weights_are_half_precision_and_finite(file: Path) -> None:
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - it is no dictionary
            assert weights.get_tensor(name).dtype == torch.float16
            assert weights.get_tensor(name).isfinite().all()


@pytest.mark.parametrize(
    ("name", "heads"),
    [("outline", {"lora_unet_"}), ("zorb", {"lora_unet_", "lora_te_text_model_encoder_"})],
)
def test_a_lora_is_in_kohyas_spelling_with_alpha_and_header(name: str, heads: set[str]) -> None:
    state = load_file(DATA / "loras" / f"{name}.safetensors")
    layers = {key.split(".")[0] for key in state}
    assert {head for head in heads if any(layer.startswith(head) for layer in layers)} == heads
    assert all(layer.startswith(tuple(heads)) for layer in layers)
    assert {float(state[f"{each}.alpha"]) / len(state[f"{each}.lora_down.weight"]) for each in layers} == {1}
    with safe_open(DATA / "loras" / f"{name}.safetensors", "pt") as weights:
        assert weights.metadata()["ss_base_model_version"] == "sd_v1"


def test_no_config_names_a_path_of_the_machine_that_trained() -> None:
    for file in (*DATA.glob("*/**/config.json"), DATA / "model" / "model_index.json"):
        assert not re.search(r'"(/|[A-Z]:)[^"]*/', file.read_text("utf-8")), file.name


def test_the_card_stands_beside_the_weights() -> None:
    text = (DATA / "MODEL_CARD.md").read_text("utf-8")
    assert all(f"| {path.relative_to(DATA).as_posix()} | " in text for path in files("model", "loras"))
