"""What a user asks for is taken where it can be, and never ends a picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks.operators.operator import Implementation, Operator, run
from lib_accel.tuning.asked import Asked
from tests.fakes.tuning import Taking

OTHER = Operator("other", torch.neg, lambda *args: (), ((),))
SQUARE = Operator("square", torch.square, lambda *args: (), ((),))


def cube(x: Tensor) -> Tensor:
    return x**3


class Refusing:
    """Refuses tensors of an odd length, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, x: Tensor) -> list[str]:
        self.asked += 1
        return [f"length is {len(x)}, needs an even one"] if len(x) % 2 else []


@pytest.fixture
def refusing() -> Refusing:
    return Refusing()


@pytest.fixture
def asked(refusing: Refusing) -> Asked:
    return Asked(Taking("square", torch.abs), SQUARE, Implementation("cube", cube), refusing)


def test_it_is_taken_for_its_operator(asked: Asked) -> None:
    assert run(SQUARE, asked, torch.full((2,), 2.0)).tolist() == [8, 8]


def test_other_operators_are_as_they_were_measured(asked: Asked) -> None:
    assert run(OTHER, asked, torch.ones(2)).tolist() == [-1, -1]


def test_what_it_refuses_is_as_it_was_measured_and_told_once(asked: Asked) -> None:
    for _ in range(2):
        assert run(SQUARE, asked, torch.full((3,), -2.0)).tolist() == [2, 2, 2]
    assert asked.refused() == ["length is 3, needs an even one"]


def test_it_is_asked_once_a_size(asked: Asked, refusing: Refusing) -> None:
    for value in (1.0, 2.0, 3.0):
        run(SQUARE, asked, torch.full((2,), value))
    assert refusing.asked == 1


def test_what_fails_is_not_taken_again(refusing: Refusing) -> None:
    def fail(x: Tensor) -> Any:
        raise RuntimeError("no such kernel\nmore")

    asked = Asked(Taking(), SQUARE, Implementation("broken", fail), refusing)
    assert run(SQUARE, asked, torch.full((2,), 3.0)).tolist() == [9, 9]
    assert asked.implementation(SQUARE, (torch.ones(2),)) is None
    assert asked.refused() == ["broken failed: RuntimeError: no such kernel"]


def test_what_was_measured_hears_of_its_own_failures(refusing: Refusing) -> None:
    measured = Taking()
    asked = Asked(measured, SQUARE, Implementation("cube", cube), refusing)
    asked.note_failure(OTHER, Implementation("fake", cube), RuntimeError("broken"))
    assert measured.failures == ["other: broken"]
    assert asked.implementation(SQUARE, (torch.ones(2),)) is not None


def test_it_prints_itself_as_its_choices_do(asked: Asked) -> None:
    assert repr(asked) == "Asked(cube, None, Taking())"
