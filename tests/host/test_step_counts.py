"""What is counted of a sampling step, and what the counts say; needs no webui."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .step_counter import AROUND, BLOCKS, LAUNCH, NUMBER, UNET, VIEW, WAIT, StepCounter
from .step_counts import Steps, problems, summary

HERE = "tests/host/test_step_counts.py:"
CPU = torch.device("cpu")
ROW = [BLOCKS, LAUNCH, "mul", "lib_accel/blocks/ops.py:1 attend", 3]


def kinds(call: Callable[[Tensor], Any]) -> dict[str, str]:
    """What a call with a (2, 3) tensor asks for: the kind of each operation."""
    counter, x = StepCounter(), torch.ones(2, 3)
    with counter.counting():
        call(x)
    assert all(asked.place.startswith(HERE) for asked in counter.steps[0])
    return {asked.operation: asked.kind for asked in counter.steps[0]}


@pytest.mark.parametrize(
    ("call", "operation", "kind"),
    [
        (lambda x: x * 2, "mul", LAUNCH),
        (lambda x: x.add_(1), "add_", LAUNCH),
        (lambda x: x.half(), "_to_copy", LAUNCH),
        (lambda x: x.sum(), "sum", LAUNCH),
        (lambda x: x[0, 0] * 2, "mul", NUMBER),
        (lambda x: x.view(-1), "view", VIEW),
        (lambda x: x.t().flatten(), "t", VIEW),
        (lambda x: torch.empty_like(x), "empty_like", VIEW),
        (lambda x: x.sum().item(), "_local_scalar_dense", WAIT),
        (lambda x: bool(x[0, 0] > 0), "_local_scalar_dense", WAIT),
        (lambda x: min(x[0, 0], x[0, 1]), "_local_scalar_dense", WAIT),
        (lambda x: x[x > 0], "index", WAIT),
        (lambda x: x.nonzero(), "nonzero", WAIT),
        (lambda x: x.to(CPU), "to", WAIT),
        (lambda x: x.to(x), "to", WAIT),
        (lambda x: x.to(device="cpu"), "to", WAIT),
        (lambda x: x.cpu(), "cpu", WAIT),
        (lambda x: x.tolist(), "tolist", WAIT),
        (lambda x: torch.tensor(2.0), "tensor", WAIT),
    ],
)
def test_an_operation_is_counted_as_what_it_is(
    call: Callable[[Tensor], Any], operation: str, kind: str
) -> None:
    assert kinds(call)[operation] == kind


def test_a_cast_is_no_move() -> None:
    assert WAIT not in kinds(lambda x: x.to(torch.float16)).values()


def test_steps_and_parts_are_told_apart() -> None:
    counter, unet, block = StepCounter(), nn.Sequential(nn.SiLU(), nn.Identity()), nn.ReLU()
    unet.append(block)
    with counter.marked(UNET, unet), counter.marked(BLOCKS, block), counter.counting():
        for _ in range(4):
            counter.next_step()
            torch.neg(unet(torch.ones(2)))
    steps = Steps(counter.told())
    assert len(steps.each) == 2  # of the first and the last it is not known where they begin and end
    parts = {asked.operation: asked.part for asked in steps.total(kind=LAUNCH)}
    assert parts == {"ones": AROUND, "silu": UNET, "relu": BLOCKS, "neg": AROUND}


def test_marks_and_modes_are_gone_afterwards() -> None:
    counter, module = StepCounter(), nn.ReLU()
    with pytest.raises(RuntimeError), counter.marked(UNET, module), counter.counting():
        raise RuntimeError
    module(torch.ones(2)).tolist()
    assert counter.steps == [{}]
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_a_module_that_raises_leaves_no_part_open() -> None:
    counter, module = StepCounter(), nn.Linear(2, 2)
    with pytest.raises(RuntimeError), counter.marked(UNET, module), counter.counting():
        module(torch.ones(3))
    with counter.counting():
        torch.ones(2).neg()
    assert {asked.part for asked in counter.steps[0]} == {AROUND}


def told(*more: list[Any]) -> Steps:
    """One step with something of ours in a block, and more."""
    return Steps([[ROW, *more]])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([UNET, LAUNCH, "add", "a.py:1 f", 1], "1.0 of kind launch in a step's unet, 0.0 without"),
        ([AROUND, NUMBER, "add", "a.py:1 f", 2], "2.0 of kind number in a step's around, 0.0 without"),
        ([BLOCKS, WAIT, "to", "a.py:1 f", 1], "1 waits more: blocks: to at a.py:1 f"),
    ],
)
def test_more_than_stock_is_a_problem(row: list[Any], problem: str) -> None:
    assert problems(told(row), told(row)) == []
    assert any(found.startswith(problem) for found in problems(told(), told(row)))


def test_a_wait_at_another_place_is_a_problem() -> None:
    stock, ours = ([AROUND, WAIT, "item", f"{name}.py:1 f", 1] for name in ("stock", "ours"))
    assert problems(told(stock), told(ours)) == ["1 waits more: around: item at ours.py:1 f"]


def test_counts_without_our_code_or_of_other_steps_show_nothing() -> None:
    assert problems(Steps([[]]), Steps([[]])) == ["no operation of our code was counted"]
    assert problems(Steps([]), Steps([])) == ["0 steps with our code, 0 without"]


def test_a_summary_is_of_one_step() -> None:
    told_twice = Steps([[ROW], [ROW, [AROUND, WAIT, "to", "a.py:1 f", 1]]])
    found = summary(told_twice)
    assert found[LAUNCH] == {BLOCKS: 3.0, UNET: 0.0, AROUND: 0.0}
    assert found[WAIT] == {"around: to at a.py:1 f": 0.5}
    assert found["operations"][BLOCKS] == {"mul": 3.0}
    assert found["files"] == {UNET: {}, AROUND: {}}
