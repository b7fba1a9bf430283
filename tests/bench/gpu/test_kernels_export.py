"""What the suite has measured of tiles becomes a GPU's table, and replaces what was predicted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.bench.gpu import kernels_export as command
from lib_accel.bench.gpu.kernels_cases import all_tiles, call_of, predicted_ms
from lib_accel.bench.gpu.kernels_export import rows_of
from lib_accel.bench.gpu.kernels_shapes import SHAPES
from lib_accel.bench.gpu.kernels_subjects import subject_of
from lib_accel.bench.gpu.parts import TUNING
from lib_accel.kernels import configs, order
from lib_accel.kernels.gpus import GPUS
from lib_accel.kernels.order import Case, in_order
from lib_accel.kernels.order import rows_of as tables_of
from lib_accel.kernels.tabulate import shapes

H200 = next(gpu for gpu in GPUS if gpu.name == "H200")
NAME = "geglu sd15: 2x4096x2560"
OWN, SECOND, THIRD, *_ = configs.GEGLU[configs.ANY]
CASE = Case("geglu", "", torch.float16, 8192, 1280)


def row(**changed: Any) -> dict[str, Any]:
    """Of `kernels-tuning`: the second tile is twice as fast as the table's own, the third is wrong."""
    tried = [
        {"tile": repr(SECOND), "ms": 0.01, "stock_ms": 0.02, "ratio": 2.0},
        {"tile": repr(THIRD), "reason": "wrong by 3 tolerances"},
    ]
    told = {"case": NAME, "kind": TUNING, "status": "done", "tile": repr(OWN), "tried": tried}
    return {**told, **changed}


def test_a_row_has_the_times_of_its_tiles_the_best_first() -> None:
    (found,) = rows_of([row()])
    assert (found.case, found.is_measured) == (CASE, True)
    assert list(found.us.items()) == [("4x256x4", 10.0), ("8x256x4", 20.0), ("2x512x4", None)]


def test_a_tiles_time_is_its_ratio_to_the_tables_own() -> None:
    times = ((SECOND, 1.0), (THIRD, 3.0))
    tried = [{"tile": repr(tile), "ms": 9.0, "stock_ms": ms, "ratio": 2.0} for tile, ms in times]
    (found,) = rows_of([row(tried=tried)])
    assert found.us == {"4x256x4": 1000.0, "2x512x4": 1000.0, "8x256x4": 2000.0}


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "kernels"},
        {"status": "failed"},
        {"case": "gone"},
        {"case": next(name for name, shape in SHAPES.items() if shape.kernel == "lora_fuse")},
        {"tile": None, "tried": []},
    ],
)
def test_what_says_nothing_of_tiles_is_left_out(other: dict[str, Any]) -> None:
    assert rows_of([row(**other)]) == []


def test_the_first_of_one_case_counts() -> None:
    alike = [name for name, shape in SHAPES.items() if shape.sizes == (2, 1280, 16, 16) and not shape.is_last]
    first, second, *_ = [name for name in alike if name.startswith("group_norm ")]
    slower = [{"tile": repr(SECOND), "ms": 9.0, "stock_ms": 9.0, "ratio": 1.0}]
    (found,) = rows_of([row(case=first), row(case=second, tried=slower)])
    assert found.us["4x256x4"] == 10.0


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(order, "FOLDER", tmp_path)
    monkeypatch.setattr(order, "gpu_on", lambda device: H200)
    tables_of.cache_clear()
    order.nearest.cache_clear()
    yield tmp_path
    tables_of.cache_clear()
    order.nearest.cache_clear()


def _exported(folder: Path, *rows: dict[str, Any], **environment: Any) -> int:
    about = {"gpu": "NVIDIA H200", "torch": "2.6.0", "triton": "3.2.0", "dry_run": False, **environment}
    (folder / "gpu.json").write_text(
        json.dumps({"environment": about, "rows": dict(enumerate(rows))}), "utf-8"
    )
    return command.main([str(folder / "gpu.json"), "--to", str(folder)])


def test_what_was_measured_is_the_order_of_that_gpu(tables: Path) -> None:
    assert _exported(tables, row()) == 0
    offered = in_order(configs.GEGLU[configs.ANY], CASE, torch.device("cpu"))
    assert list(offered) == [SECOND, OWN, configs.GEGLU[configs.ANY][3]]
    assert json.loads((tables / "h200.measured.json").read_text("utf-8"))["triton"] == "3.2.0"


@pytest.mark.parametrize("environment", [{"gpu": "NVIDIA Other"}, {"gpu": None}, {"dry_run": True}])
def test_nothing_is_written_of_what_is_no_known_gpu(
    tables: Path, environment: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exported(tables, row(), **environment) == 1
    assert "nothing to write" in capsys.readouterr().err
    assert [file.name for file in tables.iterdir()] == ["gpu.json"]


def test_every_shape_of_the_suite_has_a_prediction_for_its_own_tile() -> None:
    known = {shape.case for shape in shapes(90)}
    calls = {name: call_of(shape) for name, shape in SHAPES.items()}
    assert {call.case for call in calls.values() if call is not None} <= known
    assert {SHAPES[name].kernel for name, call in calls.items() if call is None} == {"lora_fuse"}


def test_a_prediction_is_that_of_the_table() -> None:
    found = predicted_ms(SHAPES[NAME], OWN, H200)
    table = order.exact(H200, CASE)
    assert table is not None
    assert found == table.us["8x256x4"] / 1000  # type: ignore[operator]
    assert predicted_ms(SHAPES[NAME], OWN, None) is None
    assert predicted_ms(SHAPES[NAME], OWN._replace(warps=1), H200) is None


def test_all_tiles_are_those_of_the_kernel() -> None:
    smallest = {
        shape.kernel: shape for shape in sorted(SHAPES.values(), key=lambda each: -math.prod(each.sizes))
    }
    del smallest["lora_fuse"], smallest["linear_geglu"]  # the latter has tiles of its own on an H200
    for shape in smallest.values():
        subject = subject_of(shape, torch.device("cpu"))
        assert tuple(all_tiles(shape, H200)) == tuple(subject.candidates(*subject.inputs)), shape
    assert all_tiles(SHAPES[NAME], None) == ()
