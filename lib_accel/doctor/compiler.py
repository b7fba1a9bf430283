"""Finds the C++ compiler that would be used, and lets it make a trivial program."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib_accel.doctor.facts import Compiler

_TIMEOUT_S = 60.0
_INSTALLERS = ("apt-get", "dnf", "pacman", "zypper", "apk")
_NAMES = {"win32": ("cl",), "darwin": ("clang++", "c++", "g++")}

# With something of the standard library in it, which a compiler without its headers fails at.
_PROGRAM = "#include <vector>\nint main() { return static_cast<int>(std::vector<int>{40, 2}.size()); }\n"
_STATUS_OF_PROGRAM = 2


def find_compiler(environment: Mapping[str, str], names: Sequence[str] | None = None) -> Compiler:
    """The compiler that the variable CXX names, or else the first of `names` on the path."""
    installer = next((name for name in _INSTALLERS if shutil.which(name)), None)
    chosen = environment.get("CXX", "").strip()
    if chosen:
        command = shlex.split(chosen, posix=os.name != "nt")
    else:
        candidates = _NAMES.get(sys.platform, ("g++", "c++", "clang++")) if names is None else names
        command = [name for name in candidates if shutil.which(name)][:1]
    if not command:
        return Compiler(installer=installer)
    with tempfile.TemporaryDirectory() as folder:
        return Compiler(
            name=" ".join(Path(word).name for word in command),
            version=_version(command, folder),
            fault=_fault(command, folder),
            is_chosen=bool(chosen),
            installer=installer,
        )


def _is_msvc(command: Sequence[str]) -> bool:
    return Path(command[-1]).stem.lower() in ("cl", "clang-cl")


def _version(command: Sequence[str], folder: str) -> str:
    if _is_msvc(command):
        return ""  # it has no option for that, and says it in the language of the system
    try:
        done = _run([*command, "-dumpfullversion", "-dumpversion"], folder)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _fault(command: Sequence[str], folder: str) -> str | None:
    """Why the program does not come out of the compiler, None if it does."""
    source, program = Path(folder, "trial.cpp"), Path(folder, "trial.exe")
    source.write_text(_PROGRAM, encoding="ascii")
    output = [f"/Fe:{program}", "/EHsc", "/nologo"] if _is_msvc(command) else ["-o", str(program)]
    try:
        compiled = _run([*command, str(source), *output], folder)
        if compiled.returncode:
            complaint = (compiled.stderr.strip() or compiled.stdout.strip()).splitlines()
            return f"ended with {compiled.returncode}{': ' + complaint[0] if complaint else ''}"
        status = _run([str(program)], folder).returncode
    except subprocess.TimeoutExpired:
        return f"took longer than {_TIMEOUT_S:.0f} s"
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"
    return None if status == _STATUS_OF_PROGRAM else f"its program ended with {status}"


def _run(command: Sequence[str], folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_TIMEOUT_S,
    )
