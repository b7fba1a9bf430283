"""The command itself, once, on this machine; everything private about it is poisoned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

POISON = "mallory"


def _doctor(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lib_accel", "doctor", *map(str, words)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A run as JSON by a user whose name is in every folder, variable and error that it meets."""
    home = tmp_path_factory.mktemp("homes") / POISON
    home.mkdir()
    names = ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "HF_TOKEN", "CUDA_VISIBLE_DEVICES")
    folders = ("HOME", "USERPROFILE", "TMPDIR", "XDG_CACHE_HOME", "SD_WEBUI_ROOT")
    compiler = home / "c++"
    compiler.write_text(f"#!/bin/sh\necho {home}/{POISON}.cpp: bad >&2\nexit 1\n")
    compiler.chmod(0o755)
    environment = dict.fromkeys(names, POISON) | dict.fromkeys(folders, str(home))
    return _doctor("--json", **environment, CXX=str(compiler))


def test_this_machine_is_enough(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["works"] is True


def test_every_check_finds_something_out(done: subprocess.CompletedProcess[str]) -> None:
    rows = json.loads(done.stdout)["rows"]
    assert [row for row in rows if "could not be found out" in row["finding"]] == []


def test_rows_of_this_machine_say_what_is_true_of_it(done: subprocess.CompletedProcess[str]) -> None:
    import torch

    rows = {row["what"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["torch"]["finding"].startswith(torch.__version__.split("+")[0])
    assert rows["code: direct"]["finding"].startswith("works, difference 0 ")
    assert rows["C++ compiler"]["finding"].startswith("c++ does not work: ended with 1")
    assert rows["webui"]["finding"].startswith("the variable SD_WEBUI_ROOT names no webui")


def test_no_private_word_comes_out(done: subprocess.CompletedProcess[str]) -> None:
    assert POISON not in done.stdout + done.stderr
    assert str(ROOT) not in done.stdout


def test_a_broken_torch_is_a_row_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch is not here')\n")
    done = _doctor("--report", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    assert "OSError: libtorch is not here" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "words", [["--jsno"], ["--json", "--report"], ["--webui"], ["--webui", "tests"], ["extra"]]
)
def test_wrong_arguments_end_with_2(words: list[str]) -> None:
    done = _doctor(*words)
    assert done.returncode == 2
    assert done.stdout == ""
