"""Runs the project's commands in an environment of its own; needs nothing but Python 3.10 or newer.

`demo`, `bench`, `test` and `check` make `.venv` beside this file, install there what they need, and keep it
in step with the requirement files. `doctor` runs in any Python, and installs nothing unless told to.
`host-test` and `bench-webui` use an installed webui and its own environment, and install nothing there;
`browser-test` also needs a browser, and has what drives it in `.venv`.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"


class RequirementSet(NamedTuple):
    """What a group of commands needs; `.venv` keeps a stamp of each set that it has."""

    name: str
    files: tuple[str, ...]  # for `pip install -r`
    files_without_deps: tuple[str, ...] = ()
    includes: tuple[RequirementSet, ...] = ()  # sets whose files the ones above name

    def fingerprint(self) -> str:
        """A digest of what the files say: equal if and only if nothing needs to be installed again."""
        digest = hashlib.sha256()
        for part in self.includes:
            digest.update(part.fingerprint().encode())
        for name in (*self.files, *self.files_without_deps):
            digest.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
        return digest.hexdigest()

    def stamp(self) -> Path:
        return VENV / f"installed-{self.name}.sha256"

    def is_installed(self) -> bool:
        return self.stamp().is_file() and self.stamp().read_text() == self.fingerprint()


FOR_USE = RequirementSet("use", ("requirements.txt",))
FOR_TESTS = RequirementSet("tests", ("requirements-dev.txt",), ("requirements-dev-nodeps.txt",), (FOR_USE,))
FOR_BROWSER = RequirementSet("browser", ("requirements-browser.txt",))
SETS = (FOR_USE, FOR_TESTS, FOR_BROWSER)

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
    except KeyboardInterrupt:
        return 130  # as a shell reports a command that was interrupted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, allow_abbrev=False, formatter_class=_AS_IS
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    for name, command, usage in (
        ("demo", demo, "[ARGUMENT ...]"),
        ("bench", bench, "[ARGUMENT ...]"),
        ("doctor", doctor, "[--install] [ARGUMENT ...]"),
        ("test", test, "[PYTEST ARGUMENT ...]"),
        ("check", check, ""),
        ("host-test", host_test, "[--webui DIR] [--venv DIR] [ARGUMENT ...]"),
        ("browser-test", browser_test, "[--webui DIR] [--venv DIR] [ARGUMENT ...]"),
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
            # Those two have many options of their own, and list them themselves.
            add_help=command not in (demo, bench),
        )
        sub.set_defaults(command=command)
        if "--install" in usage:
            sub.add_argument("--install", action="store_true", help="make .venv first, as for demo")
        if "--webui" in usage:
            sub.add_argument("--webui", metavar="DIR", help="the webui's checkout (default: $SD_WEBUI_ROOT)")
            sub.add_argument(
                "--venv", metavar="DIR", help="the webui's environment (default: $SD_WEBUI_VENV)"
            )
    return parser


def demo(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Makes pictures with and without acceleration, and compares them."""
    return _run_library("demo", rest)


def bench(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Measures speed with diffusers."""
    return _run_library("bench", rest)


def doctor(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Says what works on this machine, and what to do about the rest.

    Looks at .venv if there is one, or else at the Python that runs this file; installs nothing.
    Other arguments go to `python -m lib_accel doctor` as they are:
      --json        the same as data
      --report      the same to copy into an issue
      --webui DIR   a webui to look at
    """
    return _run_module("doctor", rest, _python_with(FOR_USE) if arguments.install else _python_at_hand())


def test(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs the tests that need no GPU, network or webui, in a process a core, four at most.

    What follows the command goes to pytest as it is, which then is one process, for example:
      run.py test tests/test_layering.py
      run.py test -k layering -x
      run.py test -m gpu        the tests that need a CUDA device
      run.py test -m slow       the tests that take long
    """
    # All of them side by side: a file at a time, since what its tests share is made once a process.
    arguments_of_all = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    return _run([_python_with(FOR_TESTS), "-m", "pytest", *(rest or arguments_of_all)])


def check(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Checks form, lint and types.

    Runs `ruff format --check`, `ruff check` and `mypy`, all three even if one fails.
    """
    if rest:
        raise RunError(f"check: got {' '.join(rest)!r}, expected no arguments; leave them out")
    python = _python_with(FOR_TESTS)
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


def browser_test(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Drives a real webui's page in headless Chromium.

    Needs a webui that is already installed, and a browser: `--chromium PATH`, or
    `.venv/bin/python -m playwright install chromium` once. Takes screenshots into `--shots DIR`.
    `.venv` gets what drives the browser; other arguments go to `python -m tests.host.browser` as they are.
    """
    webui, venv, _ = find_webui(arguments.webui, arguments.venv)
    python = _python_with(FOR_BROWSER)
    return _run([python, "-m", "tests.host.browser", "--webui", webui, "--venv", venv, *rest])


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


def _run_library(command: str, words: list[str]) -> int:
    # Nobody should have to install torch to read what the options are.
    wants_help = not {"-h", "--help"}.isdisjoint(words)
    return _run_module(command, words, _python_at_hand() if wants_help else _python_with(FOR_USE))


def _run_module(command: str, words: list[str], python: Path) -> int:
    """`python -m lib_accel`, in the caller's folder, which relative paths among the words are meant from."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return _run(
        [python, "-m", "lib_accel", command, *words],
        folder=Path.cwd(),
        # The second one keeps what lies in that folder from being imported (Python 3.11 or newer).
        environment={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
    )


def _python_at_hand() -> Path:
    """The Python of `.venv` if there is one, or else the one that runs this file."""
    python = _python_in(VENV)
    return python if python.is_file() else Path(sys.executable)


def _python_with(wanted: RequirementSet) -> Path:
    """The Python of `.venv`, which is made and brought in step with the set's files if it is not."""
    python = _python_in(VENV)
    if python.is_file() and wanted.is_installed():
        return python
    if not python.is_file():
        _make_venv()
    for each in SETS:  # an installation that is cut off, or changes another set's packages, leaves no stamp
        each.stamp().unlink(missing_ok=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    print("run.py: installing into .venv (torch is large: the first time takes minutes)", flush=True)
    for options, names in (([], wanted.files), (["--no-deps"], wanted.files_without_deps)):
        for name in names:
            _must([*pip, *options, "-r", ROOT / name], f"install {name}; is a package index within reach?")
    for each in (*wanted.includes, wanted):
        each.stamp().write_text(each.fingerprint())
    return python


def _make_venv() -> None:
    hint = "make .venv; is Python's venv module installed? (Debian, Ubuntu: apt install python3-venv)"
    try:
        _must([sys.executable, "-m", "venv", "--clear", VENV], hint)
    except RunError:
        # Without pip, but with a Python in it, it would be taken for a good one the next time.
        shutil.rmtree(VENV, ignore_errors=True)
        raise


def _must(command: Sequence[str | Path], aim: str) -> None:
    status = _run(command)
    if status:
        raise RunError(f"`{' '.join(map(str, command))}` ended with {status}, expected 0; it was to {aim}")


def _run(
    command: Sequence[str | Path], *, folder: Path = ROOT, environment: Mapping[str, str] | None = None
) -> int:
    sys.stdout.flush()
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - an older Python can still start this file
        sys.exit(f"run.py: got Python {sys.version.split()[0]}, expected 3.10 or newer; start it with that")
    sys.exit(main())
