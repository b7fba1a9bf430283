"""What is told of the machine, and what is not."""

from __future__ import annotations

import getpass
import json
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel import __version__
from lib_accel.bench import environment as room
from lib_accel.bench.environment import commit, cpu_name, environment

CPU = torch.device("cpu")


class FakeGit:
    """Stands for `subprocess.run` of a checkout at one commit."""

    def __init__(self, changes: str) -> None:
        self.answers = {"rev-parse": "abc123\n", "status": changes}
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        return subprocess.CompletedProcess(command, 0, self.answers[command[4]], "")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout."""
    (tmp_path / ".git").mkdir()
    return tmp_path


def test_the_environment_names_machine_versions_and_commit() -> None:
    machine = ["cpu", "cores", "threads", "ram_gib", "gpu", "device", "os"]
    versions = ["python", "torch", "diffusers", "transformers", "peft", "lib_accel"]
    assert list(environment(CPU)) == [*machine, *versions, "commit", "dirty"]


def test_the_environment_can_be_written_as_json() -> None:
    assert json.loads(json.dumps(environment(CPU)))["lib_accel"] == __version__


def test_the_environment_names_neither_the_machine_nor_its_user_nor_a_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place, name in ((platform, "node"), (socket, "gethostname"), (getpass, "getuser")):
        monkeypatch.setattr(place, name, lambda: "a-private-name")
    text = json.dumps(environment(CPU))
    private = ("a-private-name", str(Path.home()), str(Path.cwd()))
    assert [word for word in private if word in text] == []


def test_torchs_threads_are_those_of_the_moment() -> None:
    assert environment(CPU)["threads"] == torch.get_num_threads()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PACKAGES", ("no-such-package",))
    assert environment(CPU)["no-such-package"] is None


def test_the_processors_name_comes_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Fast One 9000\nmodel name\t: Other\n")
    monkeypatch.setattr(room, "_CPU_INFO", file)
    assert cpu_name() == "Fast One 9000"


def test_without_a_name_the_processors_kind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_CPU_INFO", tmp_path / "none")
    assert cpu_name() in (platform.processor(), platform.machine())


def test_a_clean_checkout_tells_its_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakeGit(""))
    assert commit(checkout) == {"commit": "abc123", "dirty": False}


def test_a_changed_checkout_is_dirty(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakeGit(" M file.py\n"))
    assert commit(checkout)["dirty"] is True


def test_git_is_asked_to_lock_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = FakeGit("")
    monkeypatch.setattr(subprocess, "run", git)
    commit(checkout)
    assert {command[1] for command in git.commands} == {"--no-optional-locks"}


def test_outside_a_checkout_no_commit_is_told(tmp_path: Path) -> None:
    assert commit(tmp_path) == {"commit": None, "dirty": None}


def test_without_git_no_commit_is_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit(checkout) == {"commit": None, "dirty": None}
