"""The suite of memory: what it counts and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.bench import memory_suite as room
from lib_accel.bench.cli import main
from lib_accel.bench.cuts import WHOLE, cut_by
from lib_accel.bench.memory_suite import CASES, MemoryCase
from lib_accel.blocks import pieces
from lib_accel.blocks.pieces import usual
from lib_accel.blocks.rules import Pieces

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command writes for one small case, of which all is cut."""
    file: Path = tmp_path_factory.mktemp("memory") / "figures.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            room, "CASES", (MemoryCase("small", "vae", 16, quick=True), MemoryCase("left out", "vae", 16))
        )
        patch.setattr(pieces, "BY_DEVICE", {"cpu": lambda device: Pieces(0, 2**16)})
        assert main(["--suite", "memory", "--quick", "--json", str(file)]) == 0
    result: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return result


def test_the_file_has_the_cases_and_where_they_ran(written: dict[str, Any]) -> None:
    assert [case["name"] for case in written["cases"]] == ["small"]
    assert written["environment"]["suite"] == "memory"


def test_pieces_are_counted_apart_from_the_whole(written: dict[str, Any]) -> None:
    (case,) = written["cases"]
    assert case["peak_mib"]["pieces"] < case["peak_mib"]["whole"] <= case["peak_mib"]["stock"]
    assert case["peak_of_stock"] == case["peak_mib"]["pieces"] / case["peak_mib"]["stock"]
    assert case["rel_l2"] < 1e-5


def test_pieces_are_cut_otherwise_for_a_while_only() -> None:
    before = usual(CPU)
    with cut_by(WHOLE):
        assert usual(CPU) == WHOLE
    assert usual(CPU) is before


def test_models_are_unets_and_vaes() -> None:
    assert {case.model for case in CASES} == set(room._MODELS)
