"""Figures as text."""

from __future__ import annotations

from typing import Any

from lib_accel.bench.table import HEADINGS, aligned, lora_lines, row

CASE: dict[str, Any] = {
    "name": "SDXL",
    "stock_ms": 12.345,
    "accelerated_ms": 6.0,
    "ratio": 2.0575,
    "ratio_low95": 1.9,
    "blocks": {"by_speed": {"direct": 40, "compiled": 0, "host": 2}, "reasons": {"because": 2}},
    "difference": {"rel_l2": 1.26e-6, "picture_max": 1, "picture_mean": 0.001},
}


def _lora(**changes: Any) -> dict[str, Any]:
    same = {"count": 10, "sha256": "x"}
    return {
        "step_ops": {"0": same, "4": same},
        "step_ratio": {"4": 0.99},
        "switch_ms": {"4": 12.0},
        "peft_switch_ms": {"4": 345.6},
        "restore_bit_identical": True,
    } | changes


def test_names_stand_left_and_figures_right() -> None:
    assert aligned(["case", "ms"], [["a", "1.0"], ["longer", "12.0"]]).splitlines() == [
        "case      ms",
        "a        1.0",
        "longer  12.0",
    ]


def test_a_case_is_rounded_for_the_table() -> None:
    assert row(CASE) == ["SDXL", "12.3", "6.0", "2.058", "1.900", "40", "2", "1.3e-06", "1"]


def test_every_column_has_a_heading() -> None:
    assert len(row(CASE)) == len(HEADINGS)


def test_a_case_without_a_picture_has_no_picture_difference() -> None:
    assert row(CASE | {"difference": {"rel_l2": 0.0}})[-1] == "-"


def test_what_is_not_measured_without_networks_is_left_open() -> None:
    assert lora_lines(_lora()).splitlines()[1].split() == ["0", "10", "-", "-", "-"]


def test_what_networks_cost_is_a_line() -> None:
    assert lora_lines(_lora()).splitlines()[2].split() == ["4", "10", "0.990", "12.0", "345.6"]


def test_equal_operations_and_bits_are_said() -> None:
    assert lora_lines(_lora()).endswith("operations of a step: the same list; back to none: the very bits")


def test_other_operations_are_said_even_if_they_are_as_many() -> None:
    other = {"0": {"count": 10, "sha256": "x"}, "4": {"count": 10, "sha256": "y"}}
    assert "DIFFERENT lists" in lora_lines(_lora(step_ops=other))


def test_other_bits_are_said() -> None:
    assert "OTHER bits" in lora_lines(_lora(restore_bit_identical=False))
