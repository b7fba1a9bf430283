"""The command line chooses a room, and says in one line what cannot work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib_accel import __version__
from lib_accel.__main__ import main
from lib_accel.errors import AccelError

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("demo", "bench", "doctor")

# What takes long to import, or is absent where a command must still say what it can do.
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "matplotlib", "PIL", "tqdm")

_LOADED = "import json, sys\nimport {module}\nprint(json.dumps(sorted(sys.modules)))"

SetRoom = Callable[[Callable[[list[str]], int]], None]


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def set_room(monkeypatch: pytest.MonkeyPatch) -> SetRoom:
    """Puts a function where the demo's `main` is."""

    def put(room: Callable[[list[str]], int]) -> None:
        monkeypatch.setitem(sys.modules, "lib_accel.demo.cli", SimpleNamespace(main=room))

    return put


def test_without_a_command_all_are_listed_and_the_status_is_2() -> None:
    done = _python("-m", "lib_accel")
    assert done.returncode == 2
    assert [name for name in COMMANDS if f"  {name} " not in done.stdout] == []


def test_help_and_version_end_with_0() -> None:
    assert _python("-m", "lib_accel", "--help").returncode == 0
    assert _python("-m", "lib_accel", "--version").stdout == f"sd-webui-accel {__version__}\n"


@pytest.mark.parametrize("words", [["dmeo"], ["--demo"], ["dem"]])
def test_what_is_no_command_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_of_its_own(command: str) -> None:
    done = _python("-m", "lib_accel", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"lib_accel {command}" in done.stdout


def test_words_after_the_command_go_to_it_as_they_are_and_its_status_comes_back(set_room: SetRoom) -> None:
    seen: list[str] = []
    set_room(lambda words: seen.extend(words) or 7)
    assert main(["demo", "--help", "--version", "doctor", "--", "-x"]) == 7
    assert seen == ["--help", "--version", "doctor", "--", "-x"]


def test_bad_input_is_one_line_and_status_2(set_room: SetRoom, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(words: list[str]) -> int:
        raise AccelError("size: got 7, expected a multiple of 8")

    set_room(refuse)
    assert main(["demo"]) == 2
    assert capsys.readouterr() == ("", "demo: size: got 7, expected a multiple of 8\n")


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    set_room: SetRoom, capsys: pytest.CaptureFixture[str]
) -> None:
    def need(words: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'diffusers.models'", name="diffusers.models")

    set_room(need)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "demo: diffusers is not installed; run `python run.py demo`\n"


def test_a_missing_module_of_ours_is_a_bug_and_stays_one(set_room: SetRoom) -> None:
    def need(words: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'lib_accel.lost'", name="lib_accel.lost")

    set_room(need)
    with pytest.raises(ModuleNotFoundError, match="lost"):
        main(["demo"])


@pytest.mark.parametrize(
    "module", ["lib_accel.__main__", *(f"lib_accel.{command}.cli" for command in COMMANDS)]
)
def test_importing_the_command_line_loads_nothing_heavy(module: str) -> None:
    done = _python("-c", _LOADED.format(module=module))
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)).isdisjoint(HEAVY)
