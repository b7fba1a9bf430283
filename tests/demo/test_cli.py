"""The command: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_accel.demo import show as room
from lib_accel.demo.cli import main
from lib_accel.demo.request import EMBEDDED_PROMPTS

ROOT = Path(__file__).resolve().parents[2]
CASES = ["no LoRA", "1 LoRA", "2 LoRAs", "ControlNet", "ControlNet, 2 LoRAs"]

_HELP_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["diffusers"] = None
from lib_accel.demo.cli import main
main(["--help"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder from which the demo was run, with as little work as shows all of it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(room, "COUNTS", (0, 1))
        with (folder / "printed").open("w") as printed:
            patch.setattr(sys, "stdout", printed)
            assert main(["--size", "64x64", "--steps", "2", "--out", "shown"]) == 0
        yield folder


@pytest.fixture
def figures(folder: Path) -> dict[str, Any]:
    """What the demo wrote down."""
    told: dict[str, Any] = json.loads((folder / "shown/demo.json").read_text("utf-8"))
    return told


@pytest.fixture
def printed(folder: Path) -> list[str]:
    """The lines that the demo printed."""
    return (folder / "printed").read_text("utf-8").splitlines()


def test_the_folder_has_pictures_plot_and_figures(folder: Path) -> None:
    assert sorted(file.name for file in (folder / "shown").iterdir()) == ["demo.json", "grid.png", "plot.png"]


def test_the_pictures_have_the_width_of_a_page(folder: Path) -> None:
    for name in ("grid", "plot"):
        with Image.open(folder / f"shown/{name}.png") as picture:
            assert 880 <= picture.width <= 900


def test_the_figures_have_exactly_the_parts_that_they_should(figures: dict[str, Any]) -> None:
    assert list(figures) == ["settings", "cases", "lora_growth", "environment"]


def test_each_case_is_told(figures: dict[str, Any]) -> None:
    assert [case["name"] for case in figures["cases"]] == CASES


def test_all_blocks_of_the_embedded_model_run_from_our_code(figures: dict[str, Any]) -> None:
    speeds = [case["blocks"]["by_speed"] for case in figures["cases"]]
    assert [speed["host"] for speed in speeds] == [0] * len(CASES)
    assert min(speed["direct"] for speed in speeds) > 0


def test_pictures_differ_by_rounding_at_most(figures: dict[str, Any]) -> None:
    assert max(case["difference"]["picture_max"] for case in figures["cases"]) <= 2


def test_the_growth_is_told_for_each_number(figures: dict[str, Any]) -> None:
    assert [point["loras"] for point in figures["lora_growth"]] == [0, 1]


def test_settings_say_what_was_shown(figures: dict[str, Any]) -> None:
    settings = figures["settings"]
    assert (settings["model"], settings["steps"], settings["width"]) == ("the embedded model", 2, 64)
    assert [lora["name"] for lora in settings["loras"]] == ["zorb", "outline"]
    assert settings["prompts"] == list(EMBEDDED_PROMPTS)


def test_the_table_has_a_line_for_each_case(printed: list[str]) -> None:
    assert [line.split("  ")[0] for line in printed[1:6]] == CASES


def test_files_are_told_as_seen_from_here(printed: list[str]) -> None:
    shown = [str(Path("shown") / name) for name in ("grid.png", "plot.png", "demo.json")]
    assert [line.split()[-1] for line in printed[-3:]] == shown


def test_no_folder_of_this_machine_is_told(folder: Path) -> None:
    told = (folder / "printed").read_text("utf-8") + (folder / "shown/demo.json").read_text("utf-8")
    assert [str(place) for place in (folder, ROOT, Path.home()) if str(place) in told] == []


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--fast"], "unrecognized arguments: --fast"),
        (["--steps", "1"], "--steps: got 1"),
        (["--size", "63x64"], "size: got 63x64"),
        (["--device", "toaster"], "device: got 'toaster'"),
        (["--model", "none"], "none"),
        (["--lora", "none"], "--lora: got one for no model"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    argv: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    out, line = capsys.readouterr()
    assert (out, line.count("\n")) == ("", 1)
    assert line.startswith("demo: ")
    assert told in line


def test_help_needs_neither_torch_nor_diffusers() -> None:
    command = [sys.executable, "-c", _HELP_WITHOUT_TORCH]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--controlnet PATH" in done.stdout
