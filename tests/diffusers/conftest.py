"""What the tests of diffusers pipelines rely on: handles are detached, and classes are then as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lib_accel
from lib_accel.hosts.diffusers import Handle
from tests.diffusers import models
from tests.diffusers.classes import methods_of_classes


@pytest.fixture(autouse=True)
def _classes_come_back() -> Iterator[None]:
    before = methods_of_classes()
    yield
    assert methods_of_classes() == before


@pytest.fixture
def accelerate(_classes_come_back: None) -> Iterator[Callable[..., Handle]]:
    """lib_accel.accelerate, undone after the test."""
    handles = []

    def make(pipe: Any, **options: Any) -> Handle:
        handles.append(lib_accel.accelerate(pipe, **options))
        return handles[-1]

    yield make
    for handle in handles:
        handle.detach()


@pytest.fixture(scope="session")
def stock() -> Callable[..., Any]:
    """What a pipeline of that form makes by itself; computed once, by models that nobody can accelerate."""
    made: dict[Any, Any] = {}

    def picture(name: str = "sd1", **given: Any) -> Any:
        key = name, *sorted(given.items())
        if key not in made:
            made[key] = models.picture(models.own_pipeline(name), name, **given)
        return made[key]

    return picture
