"""A training that is interrupted ends as one that is not."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib_accel.demo.train.loop import Lots, OutOfTime, Plan, train

PLAN = Plan("line", steps=30, rate=0.1, average=0.9, warm_up=3)
NEVER = math.inf


def line() -> nn.Linear:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(0.0)
    return model


def run(model: nn.Linear, work: Path, *, deadline: float = NEVER, stop_at: int | None = None) -> Tensor:
    """The weights after training to add two numbers, the first twice; interrupted before a step, if told."""
    calls = 0

    def loss(lots: Lots) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        numbers = torch.randn(8, 2, generator=lots.noise) * lots.choice.random()
        return (model(numbers)[:, 0] - numbers @ torch.tensor([2.0, 1.0])).square().mean()

    train(PLAN, {"line": model}, loss, work=work, deadline=deadline)
    return model.weight.detach().clone()


def test_training_learns(tmp_path: Path) -> None:
    torch.testing.assert_close(run(line(), tmp_path), torch.tensor([[2.0, 1.0]]), rtol=0.15, atol=0.1)


def test_two_trainings_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = (run(line(), folder) for folder in (tmp_path, tmp_path / "other"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_training_in_pieces_ends_as_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = run(line(), tmp_path / "whole")
    for _ in range(PLAN.steps):  # a deadline in the past lets one step through
        with pytest.raises(OutOfTime):
            run(line(), tmp_path, deadline=time.monotonic() - 1)
    torch.testing.assert_close(run(line(), tmp_path), whole, rtol=0, atol=0)


def test_a_finished_training_does_nothing_more(tmp_path: Path) -> None:
    first = run(line(), tmp_path)
    torch.testing.assert_close(run(line(), tmp_path, stop_at=1), first, rtol=0, atol=0)


def test_frozen_weights_stay(tmp_path: Path) -> None:
    model = line()
    model.bias.requires_grad_(False)
    run(model, tmp_path)
    assert model.bias.item() == 0


def test_the_rate_rises_and_falls() -> None:
    rates = [PLAN.rate_at(step) for step in range(PLAN.steps)]
    assert max(rates) == pytest.approx(PLAN.rate)
    assert rates[:3] == sorted(rates[:3])
    assert rates[3:] == sorted(rates[3:], reverse=True)
