"""run.py needs nothing installed, and says what it lacks before it does anything."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

needs_posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")


def _run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("SD_WEBUI_ROOT", "SD_WEBUI_VENV")
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    """A folder that looks like a webui's checkout."""
    root = tmp_path / "webui"
    (root / "modules").mkdir(parents=True)
    (root / "launch.py").touch()
    (root / "modules" / "processing.py").touch()
    return root


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment whose Python prints its folder and arguments and ends with 7."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\npwd\necho "$@"\nexit 7\n')
    python.chmod(0o755)
    return tmp_path / "venv"


@pytest.mark.parametrize("command", ["host-test", "bench-webui"])
def test_missing_webui_ends_with_2_and_says_what_to_pass(command: str) -> None:
    done = _run(command)
    assert done.returncode == 2
    for word in ("--webui", "SD_WEBUI_ROOT", "--venv", "SD_WEBUI_VENV"):
        assert word in done.stderr


def test_folders_that_are_neither_webui_nor_environment_are_refused(tmp_path: Path) -> None:
    done = _run("host-test", "--webui", tmp_path, "--venv", tmp_path)
    assert done.returncode == 2
    assert "lacks launch.py and modules/processing.py" in done.stderr
    assert "is not a Python environment" in done.stderr


@needs_posix
@pytest.mark.parametrize(
    ("command", "module"), [("host-test", "tests.host"), ("bench-webui", "tests.host.bench")]
)
def test_webui_python_runs_the_host_tests(command: str, module: str, webui: Path, venv: Path) -> None:
    done = _run(command, "--webui", webui, "--venv", venv, "-k", "lora", "--fast")
    assert done.returncode == 7
    assert done.stdout.splitlines() == [
        str(ROOT),
        f"-m {module} --webui {webui} --venv {venv} -k lora --fast",
    ]


@needs_posix
def test_webui_is_taken_from_the_environment(webui: Path, venv: Path) -> None:
    done = _run("host-test", SD_WEBUI_ROOT=str(webui), SD_WEBUI_VENV=str(venv))
    assert done.returncode == 7
    assert str(webui) in done.stdout


@pytest.mark.parametrize("command", ["test", "check", "host-test", "bench-webui"])
def test_each_command_has_help(command: str) -> None:
    done = _run(command, "--help")
    assert done.returncode == 0
    assert f"run.py {command}" in done.stdout


def test_unknown_command_is_refused() -> None:
    done = _run("tset")
    assert done.returncode == 2
    assert "host-test" in done.stderr


def test_run_py_imports_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / "run.py").read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
