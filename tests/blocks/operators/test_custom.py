"""Operators can be left whole: a compiler is told the truth of their results, which are as ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators import custom
from lib_accel.blocks.operators.forms import FORMS
from lib_accel.blocks.operators.layout import RESIDUAL_LAYOUT
from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.blocks.operators.projections import PROJECTIONS
from lib_accel.blocks.operators.table import OPERATORS
from lib_accel.blocks.operators.whole import Whole, computed_by, flattened, identifier, left_whole
from tests.blocks.operators.calls import CALLS, drawing
from tests.fakes.tuning import Taking

FIRST, LAST = torch.contiguous_format, torch.channels_last
SIZES = [(2, 5, 3), (1, 1, 1), (3, 1, 4)]


@pytest.fixture(scope="module", autouse=True)
def _defined() -> None:
    custom.define(FORMS)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """As blocks are called."""
    with torch.no_grad():
        yield


def call(name: str, dtype: Any = torch.float32, layout: Any = FIRST, size: Any = (2, 5, 3)) -> Arguments:
    return CALLS[name](drawing(dtype, layout), *size)


def tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_all_operators_but_those_that_no_block_calls_can_be_left_whole() -> None:
    called = set(OPERATORS) - {RESIDUAL_LAYOUT.name, PROJECTIONS.name}
    assert set(custom.definable(OPERATORS)) == called == set(CALLS)


@pytest.mark.parametrize("layout", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize("name", CALLS)
def test_torch_finds_no_fault_with_an_operation(name: str, layout: Any) -> None:
    operation = getattr(torch.ops.sd_webui_accel, identifier(name))
    for size in SIZES:
        given = flattened(call(name, layout=layout, size=size))
        torch.library.opcheck(operation, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CALLS)
def test_the_form_that_is_told_is_that_of_plain_torch(name: str, dtype: torch.dtype) -> None:
    args = call(name, dtype)
    if name == "gated linear":
        args = (*args[:-1], None)
    told = [(form.shape, form.dtype) for form in FORMS[name](*args)]
    assert told == [(tuple(each.shape), each.dtype) for each in tensors(OPERATORS[name].plain(*args))]


@pytest.mark.parametrize("name", CALLS)
def test_without_a_choice_it_is_plain_torch(name: str) -> None:
    args = call(name)
    found, right = tensors(left_whole(OPERATORS[name], args)), tensors(OPERATORS[name].plain(*args))
    assert all(map(torch.equal, found, right))


class Asked:
    """operator.Tuned that keeps what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Operator, Arguments]] = []

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        self.calls.append((operator, args))
        return None

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        raise error


@pytest.mark.parametrize("name", CALLS)
def test_arguments_come_as_they_were_given(name: str) -> None:
    asked, args = Asked(), call(name)
    with computed_by(asked):
        left_whole(OPERATORS[name], args)
    ((operator, found),) = asked.calls
    assert operator is OPERATORS[name]
    assert [repr(each) for each in found] == [repr(each) for each in args]
    hash(tuple(each for each in found if not isinstance(each, Tensor)))


def test_what_holds_on_the_thread_computes_it() -> None:
    args = call("gated linear")
    with computed_by(Taking("gated linear", lambda *args: 2 * OPERATORS["gated linear"].plain(*args))):
        found = left_whole(OPERATORS["gated linear"], args)
    assert torch.equal(found, 2 * OPERATORS["gated linear"].plain(*args))


def test_a_failure_is_noted_and_plain_torch_follows() -> None:
    def fail(*args: Any) -> Tensor:
        raise RuntimeError("no such kernel")

    args, taking = call("attention"), Taking("attention", fail)
    with computed_by(taking):
        found = left_whole(OPERATORS["attention"], args)
    assert torch.equal(found, OPERATORS["attention"].plain(*args))
    assert taking.failures == ["attention: no such kernel"]


@pytest.mark.parametrize(("layout", "other"), [(FIRST, LAST), (LAST, FIRST)], ids=["first", "last"])
def test_a_result_of_another_memory_format_is_laid_as_was_told(layout: Any, other: Any) -> None:
    args, norm = call("group norm", layout=layout), OPERATORS["group norm"]
    with computed_by(Taking("group norm", lambda *args: norm.plain(*args).contiguous(memory_format=other))):
        found = left_whole(norm, args)
    assert found.is_contiguous(memory_format=layout)
    assert torch.equal(found, norm.plain(*args))


def test_who_is_not_traced_asks_what_holds_on_the_thread() -> None:
    taking = Taking("attention", torch.abs)
    whole, operator = Whole(("attention",)), OPERATORS["attention"]
    assert whole.implementation(operator, ()) is None
    with computed_by(taking):
        assert whole.implementation(operator, ()) is taking.implementation(operator, ())
        with computed_by(None):
            assert whole.implementation(operator, ()) is None
        assert whole.implementation(operator, ()) is not None
    assert whole.implementation(operator, ()) is None


def test_an_older_torch_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert custom.why_not() is None
    monkeypatch.setattr(torch, "__version__", "2.1.2+cu121")
    monkeypatch.delattr(torch.library, "register_fake")
    assert custom.why_not() == "torch 2.1.2 compiles around no operators, 2.4 does"
