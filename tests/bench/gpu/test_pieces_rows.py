"""Rows that hold pieces against the whole, on a toy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lib_accel.bench.gpu.models import Where, import_packages
from lib_accel.bench.gpu.parts import PARTS
from lib_accel.bench.gpu.pieces_rows import CUTS, pieces_row, pieces_table
from lib_accel.bench.gpu.rows import Stand
from lib_accel.bench.gpu.sides import Makers
from lib_accel.bench.gpu.stage import staged
from lib_accel.bench.gpu.timing import DRY
from lib_accel.blocks.pieces import usual

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    import_packages()
    case = PARTS["pieces"].cases[0]
    usually = usual(CPU)
    with staged(case, Where(CPU, torch.float32, False, True)) as stage:
        figures = pieces_row(Stand(stage, DRY, Makers()), next(iter(CUTS)))
    assert usual(CPU) is usually
    return {"case": case.name, "side": next(iter(CUTS)), **figures}


def test_every_side_is_a_way_to_cut() -> None:
    assert PARTS["pieces"].sides == tuple(CUTS)


def test_pieces_hold_less_than_the_whole_and_that_less_than_stock(row: dict[str, Any]) -> None:
    held = [row["peak_mib"][what]["allocated"] for what in ("pieces", "whole", "stock")]
    assert held == sorted(held)
    assert held[0] < held[1]


def test_they_give_the_same_picture_and_not_by_the_same_sums(row: dict[str, Any]) -> None:
    assert 0 < row["rel_l2"] < 1e-5


def test_the_times_are_those_of_both(row: dict[str, Any]) -> None:
    assert math.isclose(row["ratio"], row["whole_ms"] / row["ms"])


def test_a_line_says_what_is_held(row: dict[str, Any]) -> None:
    assert f"{row['peak_mib']['whole']['allocated']:.0f}" in pieces_table([row]).splitlines()[1]
    reserved = {what: {"allocated": 5.0, "reserved": 7.0} for what in row["peak_mib"]}
    assert "5 (7)" in pieces_table([{**row, "peak_mib": reserved}])
