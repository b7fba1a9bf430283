"""What the demo loads for a request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from lib_accel.bench.models import pipeline
from lib_accel.demo.embedded import CONTROLNET, GUIDANCE, LORAS, MODEL
from lib_accel.demo.errors import DemoError
from lib_accel.demo.growth import COUNTS
from lib_accel.demo.request import request_of
from lib_accel.demo.scene import Scene, asked_of, scene_of


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's model, LoRA, ControlNet and hint."""
    folder = tmp_path_factory.mktemp("users")
    shutil.copytree(MODEL, folder / "my-model")
    shutil.copytree(CONTROLNET, folder / "my-control")
    pipeline("sd1", controls=1).controlnet.save_pretrained(folder / "other-control")
    shutil.copyfile(LORAS[0][0], folder / "style.safetensors")
    return folder


def _scene(*words: str | Path) -> Scene:
    return scene_of(request_of([str(word) for word in words]))


def test_the_embedded_model_comes_with_two_loras_and_a_controlnet() -> None:
    scene = _scene()
    assert [lora.name for lora in scene.loras] == [lora.name for lora in scene.many] == ["zorb", "outline"]
    assert scene.controlnet is not None


def test_the_growths_loras_are_weak_because_they_are_many() -> None:
    assert max(lora.scale for lora in _scene().many) * max(COUNTS) <= 1


def test_the_embedded_model_has_the_guidance_that_it_is_judged_at() -> None:
    assert _scene().asked["guidance_scale"] == GUIDANCE


def test_without_a_size_a_picture_is_as_large_as_the_model_was_made_for() -> None:
    scene = _scene()
    side = scene.pipe.unet.config.sample_size * scene.pipe.vae_scale_factor
    assert (scene.asked["width"], scene.asked["height"]) == (side, side)


def test_a_given_size_is_that_of_picture_and_hint() -> None:
    scene = _scene("--size", "64x96")
    assert (scene.asked["width"], scene.asked["height"]) == (64, 96)
    assert scene.hint is not None
    assert scene.hint.size == (64, 96)


def test_a_size_that_no_picture_can_have_is_refused() -> None:
    with pytest.raises(DemoError, match="size: got 63x64"):
        _scene("--size", "63x64")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DemoError, match="device: got 'toaster'"):
        _scene("--device", "toaster")


def test_the_controlled_pipeline_has_the_same_modules() -> None:
    scene = _scene()
    pipe, asked = scene.controlled()
    assert (pipe.unet is scene.pipe.unet, pipe.vae is scene.pipe.vae) == (True, True)
    assert (pipe.controlnet is scene.controlnet, asked["image"] is scene.hint) == (True, True)


def test_a_users_model_is_told_by_its_name_alone(files: Path) -> None:
    assert _scene("--model", files / "my-model").model == "my-model"


def test_without_loras_of_the_user_seeded_ones_are_made_for_the_plot(files: Path) -> None:
    scene = _scene("--model", files / "my-model")
    assert (list(scene.loras), len(scene.many)) == ([], max(COUNTS))
    assert scene.many_are == "seeded LoRAs made for this model"


def test_a_users_lora_is_shown_and_repeated_in_the_plot(files: Path) -> None:
    scene = _scene("--model", files / "my-model", "--lora", f"{files / 'style.safetensors'}:0.5")
    assert [(lora.name, lora.scale) for lora in scene.loras] == [("style.safetensors", 0.5)]
    assert (scene.many, scene.many_are) == (scene.loras, "the given LoRA, repeated")


def test_a_users_controlnet_gets_its_hint_in_the_pictures_size(files: Path) -> None:
    hint = files / "hint.png"
    Image.new("RGB", (300, 200)).save(hint)
    words = ("--model", files / "my-model", "--controlnet", files / "my-control", "--hint", hint)
    scene = _scene(*words, "--size", "64x64")
    assert scene.hint is not None
    assert scene.hint.size == (64, 64)


def test_a_controlnet_of_another_family_is_refused_by_name(files: Path) -> None:
    hint = files / "hint.png"
    Image.new("RGB", (64, 64)).save(hint)
    words = ("--model", files / "my-model", "--controlnet", files / "other-control", "--hint", hint)
    with pytest.raises(DemoError, match="--controlnet: got other-control, made for prompts of width 64"):
        _scene(*words)


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(DemoError, match="none"):
        _scene("--model", "none")


def test_an_inpainting_model_paints_over_a_grey_picture() -> None:
    asked = asked_of(pipeline("inpainting", task="inpaint"), request_of(["--size", "64x96"]))
    assert (asked["image"].size, asked["mask_image"].getextrema()) == ((64, 96), (255, 255))
    assert asked["strength"] == 1.0
