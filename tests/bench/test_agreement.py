"""A kind that is fused as its formula says is right, and any difference is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.bench import agreement
from lib_accel.bench.agreement import compare, kind_figures
from lib_accel.bench.kinds import KINDS, Kind
from lib_accel.bench.lora_suite import is_right
from lib_accel.lora import fusion


def _row(monkeypatch: pytest.MonkeyPatch, kind: str = "LoRA", spelling: str = "kohya") -> dict[str, Any]:
    monkeypatch.setattr(agreement, "ROWS", ((kind, (spelling,)),))
    (row,) = kind_figures()
    return row


def _other_formula(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    kind: Kind = KINDS["LoRA"]
    monkeypatch.setitem(
        agreement.KINDS, "LoRA", replace(kind, changed=lambda base, given: change(kind.changed(base, given)))
    )


def test_a_lora_is_fused_as_its_formula_says(monkeypatch: pytest.MonkeyPatch) -> None:
    row = _row(monkeypatch)
    assert is_right(row)
    assert (row["layers"], row["expected"]) == (228, 228)


def test_a_wrong_delta_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_formula(monkeypatch, lambda weight: weight * 1.001)
    row = _row(monkeypatch)
    assert row["of_change"] > 1e-3
    assert not is_right(row)


def test_a_weight_that_nothing_was_fused_into_is_wrong_by_all_of_its_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fusion.HeldWeight, "write", lambda held, pairs: None)
    row = _row(monkeypatch)
    assert row["of_change"] == pytest.approx(1.0)
    assert not is_right(row)


def test_a_refused_network_has_the_librarys_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "UNET_SCALE", float("nan"))
    row = _row(monkeypatch)
    assert "finite" in row["refused"]
    assert not is_right(row)


def test_one_wrong_layer_among_many_is_seen() -> None:
    before = {name: torch.zeros(2) for name in "ab"}
    after = {"a": torch.ones(2), "b": torch.tensor([1.0, 1.1])}
    row = compare(before, after, {name: torch.ones(2).double() for name in "ab"})
    assert row["of_change"] == pytest.approx(0.1 / 2**0.5, rel=1e-5)


def test_a_parameter_that_should_not_change_is_a_stray() -> None:
    before, after = {"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.ones(1)}
    assert compare(before, after, {"a": torch.ones(1).double()})["strays"] == 1
