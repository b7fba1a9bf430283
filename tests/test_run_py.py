"""run.py needs nothing installed, and says what it lacks before it does anything."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

needs_posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")


def _run(
    *arguments: str | Path, project: Path = ROOT, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("SD_WEBUI_ROOT", "SD_WEBUI_VENV")
    }
    return subprocess.run(
        [sys.executable, str(project / "run.py"), *map(str, arguments)],
        cwd=folder or project,
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


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of run.py with requirement files and a library that prints what it is given."""
    folder = tmp_path / "project"
    (folder / "lib_accel").mkdir(parents=True)
    shutil.copy(ROOT / "run.py", folder)
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-dev-nodeps.txt"):
        (folder / name).touch()
    (folder / "lib_accel" / "__init__.py").touch()
    (folder / "lib_accel" / "__main__.py").write_text(_LIBRARY)
    return folder


_LIBRARY = "import os, sys\nprint(sys.prefix, os.getcwd(), *sys.argv[1:], sep='\\n')\nsys.exit(5)\n"

# Notes what it is called with, ends with 7 if that is no installation, and with $STATUS_OF_PIP if it is.
_PYTHON = """#!/bin/sh
echo "$@" >> "$0.log"
[ "$2" = pip ] && exit ${STATUS_OF_PIP:-0}
exit 7
"""


@pytest.fixture
def log(project: Path) -> Path:
    """What the Python of the project's .venv, a stand-in, was called with."""
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(_PYTHON)
    python.chmod(0o755)
    return python.with_name("python.log")


def _installed(log: Path) -> list[str]:
    """The requirement files that were installed since the last time, in order."""
    lines = log.read_text().splitlines() if log.is_file() else []
    log.unlink(missing_ok=True)
    return [Path(line.split()[-1]).name for line in lines if line.startswith("-m pip install")]


@needs_posix
@pytest.mark.parametrize("command", ["demo", "bench"])
def test_command_installs_what_it_needs_and_passes_on_words_and_status(
    command: str, project: Path, log: Path
) -> None:
    done = _run(command, "--size", "64", "cat", project=project)
    assert done.returncode == 7
    assert log.read_text().splitlines()[-1] == f"-m lib_accel {command} --size 64 cat"
    assert _installed(log) == ["requirements.txt"]


@needs_posix
def test_all_tests_run_side_by_side_and_chosen_ones_one_after_the_other(project: Path, log: Path) -> None:
    _run("test", project=project)
    assert log.read_text().splitlines()[-1].startswith("-m pytest -n auto ")
    _run("test", "-m", "gpu", project=project)
    assert log.read_text().splitlines()[-1] == "-m pytest -m gpu"


@needs_posix
def test_demo_and_bench_install_once(project: Path, log: Path) -> None:
    _run("demo", project=project)
    assert _installed(log) == ["requirements.txt"]
    _run("bench", project=project)
    _run("demo", project=project)
    assert _installed(log) == []


@needs_posix
def test_demo_after_test_installs_nothing(project: Path, log: Path) -> None:
    _run("test", project=project)
    assert _installed(log) == ["requirements-dev.txt", "requirements-dev-nodeps.txt"]
    _run("demo", project=project)
    assert _installed(log) == []


@needs_posix
def test_test_after_demo_installs_its_own(project: Path, log: Path) -> None:
    _run("demo", project=project)
    _installed(log)
    _run("test", project=project)
    assert _installed(log) == ["requirements-dev.txt", "requirements-dev-nodeps.txt"]


@needs_posix
def test_packages_that_ask_for_too_much_are_installed_alone(project: Path, log: Path) -> None:
    _run("test", project=project)
    alone = [line for line in log.read_text().splitlines() if "--no-deps" in line]
    assert [Path(line.split()[-1]).name for line in alone] == ["requirements-dev-nodeps.txt"]


@needs_posix
@pytest.mark.parametrize("command", ["demo", "test"])
@pytest.mark.parametrize(
    ("changed", "users"),
    [
        ("requirements.txt", ("demo", "test")),
        ("requirements-dev.txt", ("test",)),
        ("requirements-dev-nodeps.txt", ("test",)),
    ],
)
def test_changed_file_is_installed_by_the_commands_that_use_it(
    changed: str, users: tuple[str, ...], command: str, project: Path, log: Path
) -> None:
    _run("test", project=project)
    _installed(log)
    (project / changed).write_text("# another\n")
    _run(command, project=project)
    assert bool(_installed(log)) is (command in users)


@needs_posix
def test_failed_installation_is_tried_again(project: Path, log: Path) -> None:
    done = _run("demo", project=project, STATUS_OF_PIP="3")
    assert done.returncode == 2
    assert "install requirements.txt; is a package index within reach?" in done.stderr
    assert _installed(log) == ["requirements.txt"]
    _run("demo", project=project)
    assert _installed(log) == ["requirements.txt"]


@needs_posix
def test_failed_installation_of_another_set_leaves_no_stamp(project: Path, log: Path) -> None:
    _run("demo", project=project)
    _run("test", project=project, STATUS_OF_PIP="3")
    _installed(log)
    _run("demo", project=project)
    assert _installed(log) == ["requirements.txt"]


@needs_posix
def test_help_of_demo_and_bench_installs_nothing(project: Path, log: Path) -> None:
    _run("demo", "--help", project=project)
    assert log.read_text().splitlines() == ["-m lib_accel demo --help"]


@needs_posix
def test_doctor_uses_the_environment_as_it_is(project: Path, log: Path) -> None:
    done = _run("doctor", "--json", project=project)
    assert done.returncode == 7
    assert log.read_text().splitlines() == ["-m lib_accel doctor --json"]


@needs_posix
def test_doctor_installs_when_told_to(project: Path, log: Path) -> None:
    _run("doctor", "--install", "--json", project=project)
    assert log.read_text().splitlines()[-1] == "-m lib_accel doctor --json"
    assert _installed(log) == ["requirements.txt"]


def test_doctor_without_an_environment_uses_this_python_and_makes_none(project: Path) -> None:
    done = _run("doctor", project=project)
    assert done.returncode == 5
    assert done.stdout.splitlines()[0] == sys.prefix
    assert not (project / ".venv").exists()


def test_library_runs_in_the_callers_folder(project: Path, tmp_path: Path) -> None:
    done = _run("doctor", "--webui", "here", project=project, folder=tmp_path)
    assert done.stdout.splitlines()[1:] == [str(tmp_path), "doctor", "--webui", "here"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 looks into the caller's folder first")
def test_library_is_ours_and_not_one_in_the_callers_folder(project: Path, tmp_path: Path) -> None:
    (tmp_path / "lib_accel").mkdir()
    (tmp_path / "lib_accel" / "__init__.py").touch()
    assert _run("doctor", project=project, folder=tmp_path).returncode == 5


def test_fresh_machine_gets_an_environment(project: Path) -> None:
    done = _run("demo", project=project)
    assert (done.returncode, done.stderr) == (5, "")
    assert str(project / ".venv") in done.stdout.splitlines()
    assert _run("demo", project=project).stdout.splitlines()[0] == str(project / ".venv")


def test_environment_that_could_not_be_made_is_taken_away(project: Path) -> None:
    broken = project / "venv.py"
    broken.write_text(
        "import os, sys\nos.makedirs(sys.argv[-1] + '/bin')\n"
        "open(sys.argv[-1] + '/bin/python', 'w')\nsys.exit(1)\n"
    )
    done = _run("demo", project=project, PYTHONPATH=str(project))
    assert done.returncode == 2
    assert "python3-venv" in done.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize("command", ["host-test", "bench-webui", "browser-test"])
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


@pytest.mark.parametrize("command", ["doctor", "test", "check", "host-test", "bench-webui", "browser-test"])
def test_each_command_has_help(command: str) -> None:
    done = _run(command, "--help")
    assert done.returncode == 0
    assert f"run.py {command}" in done.stdout


def test_all_commands_are_listed() -> None:
    listed = _run("--help").stdout
    assert [
        name for name in ("demo", "bench", "doctor", "test", "check") if f"    {name} " not in listed
    ] == []


def test_unknown_command_is_refused() -> None:
    done = _run("tset")
    assert done.returncode == 2
    assert "host-test" in done.stderr


def test_run_py_imports_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / "run.py").read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
