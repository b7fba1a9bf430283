"""The table, the block to copy and the data say the same."""

from __future__ import annotations

import json

from lib_accel import __version__
from lib_accel.doctor.checks import examine
from lib_accel.doctor.report import as_json, as_report, as_table
from lib_accel.doctor.verdict import Row, Verdict
from tests.doctor.machines import BARE, GOOD

ROWS = [Row("one", Verdict("yes", "fine")), Row("another", Verdict("no", "long " * 30, "do this"))]


def test_a_row_is_status_subject_finding_and_the_fix_below() -> None:
    lines = as_table(ROWS, 60).splitlines()
    assert lines[2] == "yes      one      fine"
    assert lines[3].startswith("no       another  long long")
    assert "                  -> do this" in lines


def test_table_is_not_wider_than_asked() -> None:
    assert max(map(len, as_table(examine(BARE), 80).splitlines())) <= 80


def test_a_very_narrow_terminal_still_gets_every_word() -> None:
    table = as_table(ROWS, 1)
    assert table.split().count("long") == 30


def test_table_ends_with_what_it_comes_to() -> None:
    assert as_table(examine(GOOD), 80).endswith("Ready: direct code works here.")
    assert "Not ready" in as_table(examine(BARE), 80).splitlines()[-1]


def test_report_is_one_markdown_block_with_the_version() -> None:
    report = as_report([Row("one", Verdict("yes", "``` breaks out"))])
    assert report.startswith(f"```text\nsd-webui-accel {__version__}\n")
    assert report.endswith("\n```")
    assert report.count("```") == 2


def test_json_has_every_row_as_it_is() -> None:
    data = json.loads(as_json(ROWS))
    assert data["version"] == __version__
    assert data["rows"][0] == {"what": "one", "status": "yes", "finding": "fine", "fix": ""}
    assert [row["fix"] for row in data["rows"]] == ["", "do this"]


def test_json_says_whether_it_works() -> None:
    assert json.loads(as_json(examine(GOOD)))["works"] is True
    assert json.loads(as_json(examine(BARE)))["works"] is False
