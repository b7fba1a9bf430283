"""The file of rows: what it takes over, what it refuses, what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib_accel.bench.arguments import ArgumentsError
from lib_accel.bench.gpu.file import DONE, FAILED, RowFile, row_name

HERE = {"suite": "gpu", "dry_run": False, "gpu": "One", "torch": "2.11", "commit": "abc"}
ROW = row_name("sd15", "sd15 512", "eager SDPA")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one row that is done."""
    path = tmp_path / "figures.json"
    file = RowFile(path, HERE)
    file.begin(ROW)
    file.end(ROW, {"status": DONE, "ms": 1.5})
    return path


def test_rows_are_in_the_file_as_soon_as_they_are_done(path: Path) -> None:
    read = json.loads(path.read_text("utf-8"))
    assert (read["rows"][ROW]["ms"], read["running"], read["environment"]) == (1.5, None, HERE)


def test_a_second_command_takes_the_rows_over(path: Path) -> None:
    assert RowFile(path, HERE).rows == {ROW: {"status": DONE, "ms": 1.5}}


@pytest.mark.parametrize("change", [{"gpu": "Two"}, {"torch": "2.12"}, {"dry_run": True}, {"commit": "def"}])
def test_rows_of_other_circumstances_are_refused(path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError, match=next(iter(change))):
        RowFile(path, HERE | change)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"environment": {"suite": "lora"}}'])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ArgumentsError, match="no file of the suite gpu"):
        RowFile(path, HERE)
    assert path.read_text() == text


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    path.touch()
    assert RowFile(path, HERE).rows == {}


def test_a_row_that_ended_the_process_is_not_tried_for_ever(path: Path) -> None:
    other = row_name("sd15", "sd15 512", "ours, direct")
    RowFile(path, HERE).begin(other)
    row = RowFile(path, HERE).rows[other]
    assert (row["status"], row["side"]) == (FAILED, "ours, direct")
    assert "process ended" in row["reason"]


def test_failures_can_be_forgotten_and_nothing_else_is(path: Path) -> None:
    file = RowFile(path, HERE)
    file.end("a / b / c", {"status": FAILED, "reason": "odd"})
    file.forget_failures()
    assert list(file.rows) == [ROW]


def test_nothing_is_left_beside_the_file(path: Path) -> None:
    assert [each.name for each in path.parent.iterdir()] == [path.name]
