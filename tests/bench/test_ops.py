"""The list of operations that a call launches."""

from __future__ import annotations

import torch

from lib_accel.bench.ops import digest, operations


def test_operations_are_named_in_the_order_in_which_they_run() -> None:
    one = torch.ones(2)
    assert operations(lambda: one.mul(2).exp()) == ["aten.mul.Tensor", "aten.exp.default"]


def test_what_a_layer_consists_of_is_seen() -> None:
    layer = torch.nn.Linear(2, 2)
    assert "aten.addmm.default" in operations(lambda: layer(torch.ones(1, 2)))


def test_the_call_gets_the_results_that_it_would_get_alone() -> None:
    results = []
    operations(lambda: results.append(torch.ones(2).add(1, alpha=3)))
    assert results[0].tolist() == [4, 4]


def test_nothing_is_recorded_after_the_call() -> None:
    names = operations(lambda: torch.ones(2))
    torch.ones(2).mul(2)
    assert names == ["aten.ones.default"]


def test_equal_lists_have_one_digest() -> None:
    assert digest(["a", "b"]) == digest(["a", "b"])


def test_another_order_has_another_digest() -> None:
    assert digest(["a", "b"]) != digest(["b", "a"])


def test_names_do_not_run_into_each_other_in_the_digest() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
