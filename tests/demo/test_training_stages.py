"""All stages in their order, too short to learn anything: what they hand on fits together."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from lib_accel.demo.loading import load_controlnet, load_pipeline
from lib_accel.demo.train import cli
from lib_accel.demo.train.drawing import draw, hint
from lib_accel.demo.train.scene import single
from lib_accel.demo.train.score import generate
from lib_accel.demo.train.studios import StockStudio

SHARE = ["--share", "0.0001"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `run` and `export` leave after a few steps of each stage."""
    work, data = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("data")
    assert cli.main(["run", "--work", str(work), "--threads", "1", *SHARE]) == 0
    assert cli.main(["export", "--work", str(work), "--data", str(data), *SHARE]) == 0
    return data


@pytest.mark.slow
def test_what_is_exported_draws_with_and_without_its_networks(data: Path) -> None:
    studio = StockStudio(data)
    for lora in (None, "outline", "zorb"):
        studio.set_lora(lora)
        assert generate(studio.pipe, ["a red circle"], steps=1)[0].shape == (64, 64, 3)
    studio.set_lora(None)
    edges = hint(draw(single("red", "circle", "big", "middle", "white")))
    assert generate(studio.with_controlnet(), ["a red circle"], [edges], steps=1)[0].shape == (64, 64, 3)


@pytest.mark.slow
def test_every_part_loads_from_the_folders(data: Path) -> None:
    assert load_pipeline(data / "model").unet.config.cross_attention_dim == 32
    assert load_controlnet(data / "controlnet").config.cross_attention_dim == 32
    for name in ("outline", "zorb"):
        with safe_open(data / "loras" / f"{name}.safetensors", "pt") as file:
            assert file.metadata()["ss_output_name"] == name


@pytest.mark.slow
def test_a_run_without_time_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--work", str(tmp_path), "--threads", "1", "--minutes", "0", *SHARE]) == 1
    assert "run the same command again" in capsys.readouterr().out
