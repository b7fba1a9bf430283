"""What the words of the demo's command line mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_accel.bench.arguments import ArgumentsError
from lib_accel.demo.errors import DemoError
from lib_accel.demo.request import EMBEDDED_PROMPTS, PROMPT, LoraFile, lora_of, request_of, size_of


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_words_the_embedded_model_is_shown() -> None:
    request = request_of([])
    assert (request.model, request.loras, request.size, request.device) == (None, (), None, None)


def test_each_model_has_prompts_of_its_own() -> None:
    assert request_of([]).prompts == EMBEDDED_PROMPTS
    assert request_of(["--model", "m"]).prompts == (PROMPT,)


def test_prompts_keep_their_order() -> None:
    assert request_of(["--prompt", "b", "--prompt", "a"]).prompts == ("b", "a")


def test_results_go_to_a_folder_in_the_current_one() -> None:
    request = request_of([])
    assert [file.as_posix() for file in (request.grid, request.plot, request.json)] == [
        "accel-demo/grid.png",
        "accel-demo/plot.png",
        "accel-demo/demo.json",
    ]


def test_the_folder_is_made_and_nothing_is_in_it_yet(tmp_path: Path) -> None:
    request_of(["--out", "new/folder"])
    assert list((tmp_path / "new/folder").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("style.safetensors:-1", "style.safetensors", -1.0),
        (r"C:\loras\style.safetensors", r"C:\loras\style.safetensors", 1.0),
        (r"C:\loras\style.safetensors:0.5", r"C:\loras\style.safetensors", 0.5),
        ("odd:name.safetensors", "odd:name.safetensors", 1.0),
        ("odd:name.safetensors:2", "odd:name.safetensors", 2.0),
    ],
)
def test_a_lora_is_a_file_and_perhaps_a_scale(text: str, path: str, scale: float) -> None:
    assert lora_of(text) == LoraFile(Path(path), scale)


def test_a_file_whose_name_ends_like_a_scale_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "style:0.5").touch()
    assert lora_of("style:0.5") == LoraFile(Path("style:0.5"), 1.0)


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
def test_a_scale_that_is_no_finite_number_is_refused(scale: str) -> None:
    with pytest.raises(DemoError, match=f"--lora: got scale '{scale}', expected a number"):
        lora_of(f"style.safetensors:{scale}")


def test_several_loras_keep_their_order() -> None:
    for name in ("a", "b"):
        Path(name).touch()
    request = request_of(["--model", "m", "--lora", "b:0.5", "--lora", "a"])
    assert [lora.path.name for lora in request.loras] == ["b", "a"]


def test_a_size_is_width_and_height() -> None:
    assert size_of("512x768") == size_of("512X768") == (512, 768)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--model", "m", "--lora", "none.safetensors"], "--lora: got none.safetensors, which is no file"),
        (["--lora", "style.safetensors"], "--lora: got one for no model"),
        (["--controlnet", "c", "--hint", "h"], "--controlnet: got one for no model"),
        (["--model", "m", "--controlnet", "c"], "--controlnet: got no --hint with it"),
        (["--model", "m", "--hint", "h"], "--hint: got no --controlnet with it"),
        (["--size", "512"], "--size: got '512', expected WIDTHxHEIGHT"),
        (["--size=-8x8"], "--size: got '-8x8'"),
    ],
)
def test_words_that_do_not_go_together_are_refused(argv: list[str], told: str) -> None:
    with pytest.raises(DemoError) as error:
        request_of(argv)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--steps", "1"], "--steps: got 1, expected 2 or more"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--mod", "m"], "unrecognized arguments: --mod"),
    ],
)
def test_words_that_mean_nothing_are_refused(argv: list[str], told: str) -> None:
    with pytest.raises(ArgumentsError) as error:
        request_of(argv)
    assert told in str(error.value)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_loaded() -> None:
    Path("file").touch()
    with pytest.raises(ArgumentsError, match="--out: cannot write"):
        request_of(["--out", "file/below"])
