"""Runs the project's commands in an environment of its own; needs nothing but Python 3.10 or newer.

`test` and `check` make `.venv` beside this file and keep it in step with the requirement files.
`host-test` and `bench-webui` use an installed webui and its own environment, and install nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "requirements.sha256"
REQUIREMENTS = ROOT / "requirements-dev.txt"
REQUIREMENTS_WITHOUT_DEPS = ROOT / "requirements-dev-nodeps.txt"

# What a folder must hold to be taken for a webui.
WEBUI_FILES = ("launch.py", "modules/processing.py")

# Help texts keep their lines.
_AS_IS = argparse.RawDescriptionHelpFormatter


class RunError(Exception):
    """A command cannot start; the message says what came, what was expected and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 2 if it could not start."""
    arguments, rest = _parser().parse_known_args(argv)
    command: Callable[[argparse.Namespace, list[str]], int] = arguments.command
    try:
        return command(arguments, rest)
    except RunError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, allow_abbrev=False, formatter_class=_AS_IS
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    for name, command, usage in (
        ("test", test, "[PYTEST ARGUMENT ...]"),
        ("check", check, ""),
        ("host-test", host_test, "[--webui DIR] [--venv DIR] [ARGUMENT ...]"),
        ("bench-webui", bench_webui, "[--webui DIR] [--venv DIR] [ARGUMENT ...]"),
    ):
        text = inspect.cleandoc(command.__doc__ or "")
        sub = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            usage=f"run.py {name} [-h] {usage}",
            allow_abbrev=False,
            formatter_class=_AS_IS,
        )
        sub.set_defaults(command=command)
        if "--webui" in usage:
            sub.add_argument("--webui", metavar="DIR", help="the webui's checkout (default: $SD_WEBUI_ROOT)")
            sub.add_argument(
                "--venv", metavar="DIR", help="the webui's environment (default: $SD_WEBUI_VENV)"
            )
    return parser


def test(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs the tests that need no GPU, network or webui.

    What follows the command goes to pytest as it is, for example:
      run.py test tests/test_layering.py
      run.py test -k layering -x
      run.py test -m gpu        the tests that need a CUDA device
      run.py test -m slow       the tests that take long
    """
    return _run([_python_of_project(), "-m", "pytest", *rest])


def check(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Checks form, lint and types.

    Runs `ruff format --check`, `ruff check` and `mypy`, all three even if one fails.
    """
    if rest:
        raise RunError(f"check: got {' '.join(rest)!r}, expected no arguments; leave them out")
    python = _python_of_project()
    tools = (["ruff", "format", "--check"], ["ruff", "check"], ["mypy"])
    failed = [" ".join(tool) for tool in tools if _run([python, "-m", *tool]) != 0]
    if failed:
        print(f"run.py: check failed in: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def host_test(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Tests inside a real webui.

    Needs a webui that is already installed: nothing is cloned or installed.
    The webui's own Python runs `python -m tests.host`; other arguments go to it as they are.
    """
    return _run_in_webui("tests.host", arguments, rest)


def bench_webui(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Measures speed inside a real webui.

    Needs a webui that is already installed: nothing is cloned or installed.
    The webui's own Python runs `python -m tests.host.bench`; other arguments go to it as they are.
    """
    return _run_in_webui("tests.host.bench", arguments, rest)


def _run_in_webui(module: str, arguments: argparse.Namespace, rest: list[str]) -> int:
    webui, venv, python = find_webui(arguments.webui, arguments.venv)
    return _run([python, "-m", module, "--webui", webui, "--venv", venv, *rest])


def find_webui(webui: str | None, venv: str | None) -> tuple[Path, Path, Path]:
    """The webui's folder, its environment and the Python in it, from the flags or else from the environment.

    Raises RunError that names everything which is missing.
    """
    webui = webui or os.environ.get("SD_WEBUI_ROOT")
    venv = venv or os.environ.get("SD_WEBUI_VENV")
    problems = []
    if not webui:
        problems.append(
            "no webui was named; pass --webui DIR or set SD_WEBUI_ROOT to the folder that has launch.py"
        )
    elif lacking := [name for name in WEBUI_FILES if not _folder(webui).joinpath(name).is_file()]:
        problems.append(
            f"{webui!r} is not a webui checkout, it lacks {' and '.join(lacking)}; "
            "pass --webui DIR or set SD_WEBUI_ROOT to the folder that has them"
        )
    if not venv:
        problems.append(
            "no environment was named; pass --venv DIR or set SD_WEBUI_VENV to the one the webui runs in"
        )
    elif not _python_in(_folder(venv)).is_file():
        problems.append(
            f"{venv!r} is not a Python environment, it lacks {_python_in(Path())}; "
            "pass --venv DIR or set SD_WEBUI_VENV to the one the webui runs in"
        )
    if problems or not webui or not venv:
        raise RunError("cannot reach a webui:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return _folder(webui), _folder(venv), _python_in(_folder(venv))


def _folder(name: str) -> Path:
    # Absolute, as the command will run in another folder; symbolic links stay as they are.
    return Path(os.path.abspath(os.path.expanduser(name)))


def _python_in(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _python_of_project() -> Path:
    """The Python of `.venv`, which is made and brought in step with the requirement files if it is not."""
    python = _python_in(VENV)
    wanted = fingerprint(REQUIREMENTS, REQUIREMENTS_WITHOUT_DEPS)
    if python.is_file() and STAMP.is_file() and STAMP.read_text() == wanted:
        return python
    if not python.is_file():
        _must(
            [sys.executable, "-m", "venv", "--clear", VENV], "make .venv; is Python's venv module installed?"
        )
    STAMP.unlink(missing_ok=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    print("run.py: installing into .venv (torch is large: the first time takes minutes)", flush=True)
    _must([*pip, "-r", REQUIREMENTS], f"install {REQUIREMENTS.name}; is a package index within reach?")
    _must(
        [*pip, "--no-deps", "-r", REQUIREMENTS_WITHOUT_DEPS],
        f"install {REQUIREMENTS_WITHOUT_DEPS.name}; is a package index within reach?",
    )
    STAMP.write_text(wanted)
    return python


def fingerprint(*files: Path) -> str:
    """A digest of what the files say: equal if and only if nothing needs to be installed again."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _must(command: Sequence[str | Path], aim: str) -> None:
    status = _run(command)
    if status:
        raise RunError(f"`{' '.join(map(str, command))}` ended with {status}, expected 0; it was to {aim}")


def _run(command: Sequence[str | Path]) -> int:
    sys.stdout.flush()
    return subprocess.run([str(word) for word in command], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - an older Python can still start this file
        sys.exit(f"run.py: got Python {sys.version.split()[0]}, expected 3.10 or newer; start it with that")
    sys.exit(main())
