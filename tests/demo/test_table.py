"""The demo's table."""

from __future__ import annotations

from lib_accel.demo.table import HEADINGS, row, table
from tests.demo.shown import outcome


def test_a_case_is_rounded_for_the_table() -> None:
    assert row(outcome("2 LoRAs", loras=2)) == [
        "2 LoRAs",
        "30.0",
        "20.0",
        "1.50x",
        "1/255",
        "45/1",
        "300/12",
    ]


def test_without_loras_there_is_no_switch() -> None:
    assert row(outcome("no LoRA"))[-1] == "-"


def test_every_column_has_a_heading() -> None:
    assert len(row(outcome())) == len(HEADINGS)


def test_the_table_has_a_line_for_each_case() -> None:
    lines = table([outcome("no LoRA"), outcome("1 LoRA", loras=1)]).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["case", "no LoRA", "1 LoRA"]
