"""The model in the repository draws what it is told, and its LoRAs and ControlNet change what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lib_accel.demo.train.captions import shapeless
from lib_accel.demo.train.drawing import draw, hint
from lib_accel.demo.train.export import DATA
from lib_accel.demo.train.judge import Seen, edge_overlap, judge
from lib_accel.demo.train.scene import single
from lib_accel.demo.train.score import generate
from lib_accel.demo.train.studios import AcceleratedStudio, StockStudio
from lib_accel.lora.formats import read_network

pytestmark = pytest.mark.trained

MIB = 2**20
PROMPTS = ("a red circle on a white background", "a big blue square in the middle on a black background")


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
    prompt = "a big green zorb in the middle on a white background"
    (without,) = looks(studio.pipe, prompt)
    studio.set_lora("zorb")
    (with_it,) = looks(studio.pipe, prompt)
    studio.set_lora(None)
    assert without.shape != "heart"
    assert (with_it.colour, with_it.shape) == ("green", "heart")


@pytest.mark.parametrize("shape", ["star", "square"])
def test_the_controlnet_follows_its_hint(studio: StockStudio, shape: str) -> None:
    scene = single("red", shape, "medium", "top", "white")
    wanted = draw(scene)
    (free,) = generate(studio.pipe, [shapeless(scene)])
    (made,) = generate(studio.with_controlnet(), [shapeless(scene)], [hint(wanted)])
    assert edge_overlap(wanted, made) > 0.5 > edge_overlap(wanted, free)
    assert judge(made).things[0].shape == shape


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


@pytest.mark.parametrize(("name", "components"), [("outline", {"unet"}), ("zorb", {"unet", "text_encoder"})])
def test_a_lora_is_in_kohyas_spelling_with_alpha_and_header(name: str, components: set[str]) -> None:
    file = DATA / "loras" / f"{name}.safetensors"
    network = read_network(file)
    assert {key.component for key in network.layers} == components
    assert {layer.alpha / layer.down.shape[0] for layer in network.layers.values()} == {1.0}
    with safe_open(file, "pt") as weights:
        assert weights.metadata()["ss_base_model_version"] == "sd_v1"
        names = list(weights.keys())
    assert all(name.startswith(("lora_unet_", "lora_te_text_model_encoder_")) for name in names)


def test_no_config_names_a_path_of_the_machine_that_trained() -> None:
    for file in (*DATA.glob("*/**/config.json"), DATA / "model" / "model_index.json"):
        assert not re.search(r'"(/|[A-Z]:)[^"]*/', file.read_text("utf-8")), file.name


def test_the_card_stands_beside_the_weights() -> None:
    text = (DATA / "MODEL_CARD.md").read_text("utf-8")
    assert all(f"| {path.relative_to(DATA).as_posix()} | " in text for path in files("model", "loras"))
