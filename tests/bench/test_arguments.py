"""Bad input of a command ends in one line and exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_accel.bench.arguments import ArgumentsError, Parser, at_least, told, writable
from lib_accel.errors import AccelError


def _fail(_: list[str]) -> int:
    raise AccelError("got this\n  expected that")


def _crash(_: list[str]) -> int:
    raise RuntimeError("a bug")


def test_a_command_that_works_gives_its_own_status() -> None:
    assert told(len, ["a", "b", "c"], name="x") == 3


def test_an_error_is_exit_status_2() -> None:
    assert told(_fail, [], name="x") == 2


def test_an_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    told(_fail, [], name="demo")
    assert capsys.readouterr() == ("", "demo: got this expected that\n")


def test_a_bug_is_not_taken_for_bad_input() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        told(_crash, [], name="x")


def test_an_unknown_flag_is_an_error_that_names_it_and_where_help_is() -> None:
    with pytest.raises(ArgumentsError, match=r"--loud; see `prog --help`"):
        Parser(prog="prog").parse_args(["--loud"])


def test_a_number_below_the_least_is_refused_by_the_name_of_its_flag() -> None:
    with pytest.raises(ArgumentsError, match="--steps: got 1, expected 2 or more"):
        at_least(2, threads=2, steps=1)


def test_the_folder_of_a_file_is_made(tmp_path: Path) -> None:
    writable(tmp_path / "new" / "file.json", "--json")
    assert (tmp_path / "new").is_dir()


def test_asking_whether_a_file_is_writable_leaves_no_file_behind(tmp_path: Path) -> None:
    writable(tmp_path / "file.json", "--json")
    assert list(tmp_path.iterdir()) == []


def test_asking_whether_a_file_is_writable_leaves_its_content(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text("kept")
    writable(file, "--json")
    assert file.read_text() == "kept"


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match=r"^--json: cannot write .* \(.+\); name a file"):
        writable(tmp_path, "--json")


def test_a_file_below_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentsError, match="cannot write"):
        writable(tmp_path / "file" / "inner.json", "--json")
