"""The whole demo: cases do not get in each other's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_accel.bench.timing import STOCK
from lib_accel.demo import show as room
from lib_accel.demo.request import request_of
from lib_accel.demo.stage import Stage
from tests.demo.shown import outcome


def test_no_case_begins_with_what_another_left_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def run_stock_only(stage: Stage, case: room.Case, steps: int, prompts: Any) -> Any:
        stage.wear(case.loras)
        found.append(getattr(stage._pipe.unet, "peft_config", None))
        stage.run(STOCK, steps, prompt=prompts[0])
        return outcome()

    monkeypatch.setattr(room, "outcome_of", run_stock_only)
    monkeypatch.setattr(room, "COUNTS", (0, 1))
    room.show(request_of(["--out", str(tmp_path), "--size", "64x64", "--steps", "2"]))
    assert [not adapters for adapters in found] == [True] * 5
