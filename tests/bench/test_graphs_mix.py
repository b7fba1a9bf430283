"""Counters over a mix of pictures, with graphs that are traced only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lib_accel.bench import graphs_apart
from lib_accel.bench.graphs_mix import counters_of, counters_or_reason, is_flat, mix, warm_up_pictures
from lib_accel.bench.graphs_models import WIDTHS
from tests.bench.graphs import WIDTH, CountingBackend


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    """Counters of `ldm`; `made` is what the back end counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WIDTHS, "toy", WIDTH)
        backend = CountingBackend()
        return counters_of("ldm", "toy", backends=backend) | {"made": backend.made}


def test_the_mix_makes_no_graph(counted: dict[str, Any]) -> None:
    assert counted["graphs_after_warmup"] == counted["graphs_after_mix"] == counted["made"]
    assert (counted["recompiles"], counted["reasons"]) == (0, [])
    assert [row["new_graphs"] for row in counted["pictures"]] == [0] * len(counted["pictures"])
    assert is_flat(counted)


def test_blocks_of_each_picture_run_compiled_and_give_what_stock_gives(counted: dict[str, Any]) -> None:
    assert counted["not_compiled"] == {}
    for row in counted["pictures"]:
        assert row["blocks"]["compiled"] > row["blocks"]["direct"]
        assert row["blocks"]["host"] == 0
        assert row["rel_l2"] < 1e-5


def test_the_mix_has_all_that_may_not_compile() -> None:
    pictures = mix(16, (17, 13))
    assert {each.batch for each in pictures} == {1, 2, 4}
    assert {each.tokens for each in pictures} == {77, 231}
    assert {each.control for each in pictures} == {True, False}
    assert {each.checkpoint for each in pictures} == {0, 1}
    assert {0.0, 0.5, 1.0} <= {each.network for each in pictures}
    assert {(17, 13), (16, 32), (24, 16)} <= {(each.height, each.width) for each in pictures}


def test_the_warm_up_knows_one_size_and_one_checkpoint() -> None:
    assert {each[1:3] + each[4:] for each in warm_up_pictures(16)} == {(16, 16, 77, True, 0.0, 0)}


def _figures(**changes: Any) -> dict[str, Any]:
    return {"structures": 17, "graphs_after_warmup": 17, "graphs_after_mix": 17} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"graphs_after_mix": 18},
        {"structures": 25, "graphs_after_warmup": 25, "graphs_after_mix": 25},
        {"graphs_after_warmup": 35, "graphs_after_mix": 35},
    ],
)
def test_it_is_not_flat_for_each_reason(changes: dict[str, Any]) -> None:
    assert is_flat(_figures())
    assert not is_flat(_figures(**changes))


def test_a_package_that_is_missing_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sgm.modules.diffusionmodules.openaimodel", None)
    assert list(counters_or_reason("sgm", "toy")) == ["left_out"]


def test_a_process_that_fails_is_left_out_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho first >&2; echo 'no memory' >&2; exit 3\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    figures = graphs_apart.cold_and_warm("ldm", "toy", 1)
    assert figures == {"left_out": "its process ended with 3: first | no memory"}


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_one_compiled() -> None:
    figures = graphs_apart.cold_and_warm("ldm", "toy", 1)
    assert is_flat(figures)
    assert figures["warm_compile_s"] < figures["compile_s"]
