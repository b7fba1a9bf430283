"""A GPU's tiles are tried in its own order, without those that are far from the best, by tables in files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_accel.blocks.operators.operator import Operator
from lib_accel.kernels import bias_residual, configs, geglu, group_norm, layer_norm, linear_geglu, order
from lib_accel.kernels.configs import Line, Tile
from lib_accel.kernels.gpus import GPUS, Gpu
from lib_accel.kernels.group_norm import Norm
from lib_accel.kernels.order import FIRST, LAST, Case, Row, content_of, exact, file_of, in_order, text_of
from lib_accel.tuning.signature import call_of, size_class

HALF, CPU = torch.float16, torch.device("cpu")
GPU = next(gpu for gpu in GPUS if gpu.name == "RTX 4090")
TILES = tuple(Tile(high=high, wide=256, warps=4) for high in (1, 2, 4, 8))
CASE = Case("geglu", "", HALF, 4096, 1280)
ROWS = Operator("rows", lambda x: x, lambda x: (), ((0,),))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where tables are read, on what is a GPU of the table."""
    monkeypatch.setattr(order, "FOLDER", tmp_path)
    monkeypatch.setattr(order, "gpu_on", lambda device: GPU)
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    order.rows_of.cache_clear()
    order.nearest.cache_clear()


def write(*rows: tuple[Case, dict[int, float | None]], source: str = "predicted", gpu: Gpu = GPU) -> None:
    """A table with times of TILES by their height."""
    told = [Row(case, {f"{high}x256x4": us for high, us in times.items()}, False) for case, times in rows]
    file_of(gpu, is_measured=source == "measured").write_text(text_of(content_of(gpu, source, told)), "utf-8")


def heights(case: Case = CASE) -> list[int]:
    return [tile.high for tile in in_order(TILES, case, CPU)]


# The order


def test_tiles_are_tried_best_first(folder: Path) -> None:
    write((CASE, {1: 13.0, 2: 12.0, 4: 10.0, 8: 11.0}))
    assert heights() == [4, 8, 2, 1]


def test_what_is_far_from_the_best_is_left_out(folder: Path) -> None:
    write((CASE, {1: 15.1, 2: 14.9, 4: 10.0, 8: 12.0}))
    assert heights() == [4, 8, 2]


def test_two_are_tried_however_far_apart_they_are(folder: Path) -> None:
    write((CASE, {1: 50.0, 2: 40.0, 4: 10.0, 8: 30.0}))
    assert heights() == [4, 8]


def test_what_is_alike_stays_in_its_usual_order(folder: Path) -> None:
    write((CASE, {1: 10.1, 2: 10.0, 4: 10.1, 8: 10.0}))
    assert heights() == [1, 2, 4, 8]


def test_what_the_table_does_not_know_is_tried_last(folder: Path) -> None:
    write((CASE, {2: 40.0, 8: 10.0}))
    assert heights() == [8, 2, 1, 4]


def test_what_cannot_be_had_is_not_tried(folder: Path) -> None:
    write((CASE, {1: None, 2: 12.0, 4: None, 8: 10.0}))
    assert heights() == [8, 2]


def test_where_nothing_can_be_had_all_are_tried(folder: Path) -> None:
    write((CASE, dict.fromkeys((1, 2, 4, 8))))
    assert heights() == [1, 2, 4, 8]


# Which row


def test_the_row_of_the_nearest_shape_counts(folder: Path) -> None:
    write((CASE, {1: 1.0, 2: 2.0}), (CASE._replace(positions=512), {1: 2.0, 2: 1.0}))
    sizes = (4096, 2000, 1000, 64)
    assert [heights(CASE._replace(positions=size))[0] for size in sizes] == [1, 1, 2, 2]
    assert heights(CASE._replace(channels=320, positions=512))[0] == 2


def test_far_from_any_row_nothing_is_left_out(folder: Path) -> None:
    write((CASE, {1: 50.0, 2: 40.0, 4: 10.0, 8: 30.0}))
    assert heights(CASE._replace(positions=1024)) == [4, 8]
    assert heights(CASE._replace(positions=512)) == [4, 8, 2, 1]


@pytest.mark.parametrize("other", [{"kernel": "layer_norm"}, {"kind": LAST}, {"dtype": torch.float32}])
def test_what_another_kernel_or_kind_takes_says_nothing(folder: Path, other: dict[str, Any]) -> None:
    write((CASE, {1: 2.0, 2: 1.0}))
    assert heights(CASE._replace(**other)) == [1, 2, 4, 8]


def test_bfloat16_takes_what_float16_takes(folder: Path) -> None:
    write((CASE, {1: 2.0, 2: 1.0}))
    assert heights(CASE._replace(dtype=torch.bfloat16)) == [2, 1, 4, 8]


@pytest.mark.parametrize("rows", range(1450, 2896, 37))
def test_calls_of_one_size_class_are_offered_the_same(folder: Path, rows: int) -> None:
    below, above = CASE._replace(positions=1448), CASE._replace(positions=2900)
    write((below, {1: 1.0, 2: 2.0}), (above, {1: 2.0, 2: 1.0}))
    shape = CASE._replace(positions=rows)
    assert size_class(ROWS, call_of(ROWS, (torch.empty(rows, 1280),)))[0].endswith("x11")
    assert heights(shape) == heights(shape._replace(positions=2048))


# Files


def test_what_was_measured_replaces_what_was_predicted(folder: Path) -> None:
    other = CASE._replace(channels=5120)
    write((CASE, {1: 1.0, 2: 2.0}), (other, {1: 1.0, 2: 2.0}))
    write((CASE, {1: 2.0, 2: 1.0}), source="measured")
    assert [heights()[0], heights(other)[0]] == [2, 1]
    row = exact(GPU, CASE)
    assert row is not None
    assert row.us == {"1x256x4": 1.0, "2x256x4": 2.0}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": 2, "gpu": "RTX 4090", "source": "predicted", "us": {}}',
        '{"schema": 1, "gpu": "RTX 3060", "source": "predicted", "us": {}}',
        '{"schema": 1, "gpu": "RTX 4090", "source": "predicted", "us": {"geglu": {}, "a": {"1": {}}}}',
        '{"schema": 1, "gpu": "RTX 4090", "source": "predicted", "us": {"geglu /  / float16": {"4096x1280": '
        '{"8x256x4": -1}}}}',
    ],
)
def test_a_broken_table_is_told_and_leaves_the_usual_order(
    folder: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file_of(GPU, is_measured=False).write_text(text, "utf-8")
    with caplog.at_level(logging.WARNING):
        assert heights() == [1, 2, 4, 8]
    assert "tiles stay in their usual order" in caplog.text


def test_a_missing_table_leaves_the_usual_order(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert in_order(TILES, CASE, CPU) is TILES
    assert "no table of tiles" in caplog.text


def test_a_table_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write((CASE, {1: 2.0, 2: 1.0}))
    first = heights()
    monkeypatch.setattr(Path, "read_text", lambda *_: pytest.fail("read again"))
    assert [heights(), heights(CASE._replace(positions=8192))] == [first, first]


def test_a_gpu_that_nobody_knows_has_the_usual_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write((CASE, {1: 2.0, 2: 1.0}))
    monkeypatch.setattr(order, "gpu_on", lambda device: None)
    assert in_order(TILES, CASE, CPU) is TILES


def test_a_table_has_a_line_a_shape_and_is_read_as_it_was_written(folder: Path) -> None:
    write((CASE, {1: 1234.56, 2: None}), (CASE._replace(kernel="layer_norm", kind=LAST), {1: 0.00123}))
    text = file_of(GPU, is_measured=False).read_text("utf-8")
    assert text.splitlines()[2] == ' "4096x1280": {"1x256x4": 1230.0, "2x256x4": null}},'
    us = json.loads(text)["us"]
    assert us["layer_norm / channels last / float16"] == {"4096x1280": {"1x256x4": 0.00123}}


# In kernels


NORM = Norm(32, 1e-5, HALF)
IMAGE = torch.empty(2, 320, 64, 64, dtype=HALF, device="meta")
TOKENS = torch.empty(2, 4096, 1280, dtype=HALF, device="meta")
CALLS: dict[str, tuple[Callable[[], Any], Case]] = {
    "group norm": (
        lambda: group_norm.candidates(IMAGE, None, None, NORM),
        Case("group_norm", FIRST, HALF, 8192, 320),
    ),
    "group norm, last": (
        lambda: group_norm.candidates(IMAGE.to(memory_format=torch.channels_last), None, None, NORM),
        Case("group_norm", LAST, HALF, 8192, 320),
    ),
    "layer norm": (
        lambda: layer_norm.candidates(TOKENS, None, None, HALF),
        Case("layer_norm", "", HALF, 8192, 1280),
    ),
    "geglu": (lambda: geglu.candidates(TOKENS), Case("geglu", "", HALF, 8192, 640)),
    "bias, residual": (
        lambda: bias_residual.candidates(IMAGE, None, IMAGE),
        Case("bias_residual", FIRST, HALF, 8192, 320),
    ),
    "bias, residual of tokens": (
        lambda: bias_residual.candidates(TOKENS, None, TOKENS),
        Case("bias_residual", LAST, HALF, 8192, 1280),
    ),
    "linear geglu": (
        lambda: linear_geglu.candidates(TOKENS, torch.empty(10240, 1280, device="meta"), None),
        Case("linear_geglu", "", HALF, 8192, 1280),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_offers_its_tiles_as_its_gpus_table_has_them(folder: Path, name: str) -> None:
    offered, case = CALLS[name]
    usual = offered()
    backwards = {order.key_of(tile): 100.0 - 5 * number for number, tile in enumerate(usual)}
    text = text_of(content_of(GPU, "predicted", [Row(case, backwards, False)]))
    file_of(GPU, is_measured=False).write_text(text, "utf-8")
    _forget()
    order._read.cache_clear()
    assert offered() == tuple(reversed(usual))


def test_ways_of_a_group_norm_are_told_apart() -> None:
    ways = configs.group_norm(40960, 4096, is_last=True)
    assert {Line, configs.Chunk} == {*map(type, ways)}
    assert len({*map(order.key_of, ways)}) == len(ways)


def test_powers_of_two_are_those_of_size_classes() -> None:
    rows = [order._apart(CASE, CASE._replace(positions=size)) for size in (2897, 4096, 5792, 5793)]
    assert rows == [0.0, 0.0, 0.0, 1.0]
    assert math.isclose(order._apart(CASE, CASE._replace(channels=2560)), 1.0)
