"""A compiler counts if a program comes out of it. The compilers here are shell scripts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib_accel.doctor.compiler import find_compiler

# Writes a program that ends with the status of a good one.
GOOD = 'for last; do :; done\nprintf "#!/bin/sh\\nexit 2\\n" > "$last"\nchmod +x "$last"\n'

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for a compiler is a shell script")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program on the path besides the system's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    return folder / "my-c++"


def _write(path: Path, script: str) -> None:
    path.write_text(f'#!/bin/sh\ncase "$*" in *-dumpfullversion*) echo 12.3; exit 0;; esac\n{script}')
    path.chmod(0o755)


def test_a_compiler_whose_program_runs_has_no_fault(compiler: Path) -> None:
    _write(compiler, GOOD)
    found = find_compiler({}, ["absent", "my-c++"])
    assert (found.name, found.version, found.fault) == ("my-c++", "12.3", None)
    assert not found.is_chosen


def test_a_compiler_that_fails_has_the_first_line_of_its_complaint(compiler: Path) -> None:
    _write(compiler, "echo 'no vector' >&2\necho more >&2\nexit 1\n")
    assert find_compiler({}, ["my-c++"]).fault == "ended with 1: no vector"


def test_a_program_that_does_not_run_right_is_the_compilers_fault(compiler: Path) -> None:
    _write(compiler, GOOD.replace("exit 2", "exit 5"))
    assert find_compiler({}, ["my-c++"]).fault == "its program ended with 5"


def test_the_variable_cxx_comes_first_and_may_have_arguments(compiler: Path) -> None:
    _write(compiler, GOOD)
    found = find_compiler({"CXX": f"{compiler} -O1"}, ["absent"])
    assert (found.name, found.fault, found.is_chosen) == ("my-c++ -O1", None, True)


def test_what_a_compiler_writes_does_not_land_in_the_callers_folder(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.write_text("#!/bin/sh\ntouch a.out\n")
    compiler.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    find_compiler({}, ["my-c++"])
    assert not (tmp_path / "a.out").exists()


def test_a_chosen_compiler_that_is_not_there_is_a_fault() -> None:
    found = find_compiler({"CXX": "/nowhere/c++"})
    assert (found.name, found.fault) == ("c++", "FileNotFoundError: No such file or directory")


def test_no_compiler_has_no_name_but_the_way_to_install_one(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(compiler.parent))
    _write(compiler.with_name("dnf"), "")
    found = find_compiler({})
    assert (found.name, found.installer) == (None, "dnf")
