"""A unit that finds no memory is tried once more in pieces, before the host's own code is."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks import res
from lib_accel.blocks.pieces import SCARCE
from lib_accel.engine import Engine
from tests.fakes.host import FakeHost
from tests.fakes.models import difference, inputs, run, tiny_unet

LIMIT = 2e-6
REASON = "memory ran out, so that it was computed in pieces"
ERRORS = [torch.cuda.OutOfMemoryError("full"), MemoryError("full")]


class Full:
    """Residual blocks for which there is no memory as a whole, and in pieces neither if it `is_full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.cuts: list[Any] = []
        self.is_full = False
        self.kept: list[bool] = []  # whether what was made before was alive still
        self._error, self._real = error, res.res_block
        self._made: weakref.ref[Tensor] | None = None
        monkeypatch.setattr(res, "res_block", self)

    def __call__(self, x: Tensor, emb: Tensor, weights: Any, spec: Any, rules: Any) -> Tensor:
        self.cuts.append(rules.pieces)
        if rules.pieces is not None:
            self.kept.append(self._made is not None and self._made() is not None)
        if rules.pieces is None or self.is_full:
            made = x + 1
            self._made = weakref.ref(made)
            raise type(self._error)("full")  # a new one: it holds what is alive where it is raised
        return self._real(x, emb, weights, spec, rules)


@pytest.fixture(params=ERRORS, ids=lambda error: type(error).__name__)
def full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch, request.param)


def stock(host: FakeHost, unet: Any) -> Tensor:
    with host.switched_off():
        return run(unet, inputs())


def test_it_runs_in_pieces_and_gives_the_hosts_picture(engine: Engine, host: FakeHost, full: Full) -> None:
    unet = tiny_unet()
    assert difference(run(unet, inputs()), stock(host, unet)) <= LIMIT
    assert set(full.cuts) == {None, SCARCE}
    assert engine.generation.host == 0


def test_what_was_made_before_is_free_by_then(engine: Engine, full: Full) -> None:
    run(tiny_unet(), inputs())
    assert full.kept
    assert not any(full.kept)


def test_the_report_says_so_and_counts_the_blocks(engine: Engine, host: FakeHost, full: Full) -> None:
    unet = tiny_unet()
    host.live = [("UNet", unet)]
    run(unet, inputs())
    assert list(engine.generation.reasons) == [REASON]
    assert engine.generation.reasons[REASON] >= full.cuts.count(None)
    assert REASON in engine.report().summary


def test_recordings_give_their_memory_back_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, full: Full
) -> None:
    released: list[int] = []
    monkeypatch.setattr(engine._launching, "release", lambda: released.append(len(full.cuts)))
    run(tiny_unet(), inputs())
    assert released[0] == full.cuts.index(SCARCE)


def test_where_pieces_find_none_either_the_hosts_code_runs(
    engine: Engine, host: FakeHost, full: Full
) -> None:
    full.is_full = True
    unet = tiny_unet()
    assert difference(run(unet, inputs()), stock(host, unet)) <= LIMIT
    assert engine.generation.host > 0
    assert REASON not in engine.generation.reasons


def test_it_is_no_lasting_failure(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_unet()
    with monkeypatch.context() as patch:
        Full(patch, MemoryError("full"))
        run(unet, inputs())
    engine.begin_generation()
    run(unet, inputs())
    assert (dict(engine.generation.reasons), engine.generation.host) == ({}, 0)


def test_another_fault_is_not_tried_in_pieces(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full(monkeypatch, RuntimeError("kernel is broken"))
    run(tiny_unet(), inputs())
    assert set(full.cuts) == {None}
