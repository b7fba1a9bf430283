"""Weights are laid elsewhere in memory and written by LoRAs' thread, but never both at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.blocks.adjacent import are_adjacent
from lib_accel.channels_last import convolution_weights, is_last
from lib_accel.hosts.diffusers import Handle
from lib_accel.packing import pieces_of
from tests.diffusers import models
from tests.diffusers.test_equality import Accelerate
from tests.diffusers.test_loras import bits, lora_for, same
from tests.fakes.tuning import FakeTuner

PATIENCE_S = 10.0
OTHERS_ARE_FASTER = {"torch": 2.0, "packed": 1.0, "channels last": 1.0}


class Stage:
    """A pipeline whose weights are to be laid in other ways between pictures."""

    def __init__(self, accelerate: Callable[..., Handle]) -> None:
        self.pipe = models.own_pipeline()
        self.handle = accelerate(self.pipe, launch="eager")
        self.lora, self.tuner = lora_for(self.pipe), FakeTuner()
        self.handle._engine._measured._tuner = self.tuner  # type: ignore[assignment]
        self.step()
        self.tuner.ms = OTHERS_ARE_FASTER

    def step(self) -> None:
        with torch.no_grad():
            models.call(self.pipe.unet, 50)

    def loras(self, scale: float) -> None:
        self.handle.set_loras([(self.lora, scale, scale)])

    @property
    def laid(self) -> set[bool]:
        """Whether projections are packed, and some convolutions channels last."""
        unet: nn.Module = self.pipe.unet
        is_turned = any(map(is_last, convolution_weights(unet)))
        return {*map(are_adjacent, pieces_of(unet)), is_turned}

    @contextmanager
    def written_elsewhere(self) -> Iterator[None]:
        """Another thread writes to weights meanwhile."""
        begun, end = threading.Event(), threading.Event()

        def write() -> None:
            with self.handle._engine.weights:
                begun.set()
                assert end.wait(PATIENCE_S)

        thread = threading.Thread(target=write)
        thread.start()
        assert begun.wait(PATIENCE_S)
        try:
            yield
        finally:
            end.set()
            thread.join(PATIENCE_S)


@pytest.fixture
def stage(accelerate: Accelerate) -> Stage:
    return Stage(accelerate)


def _interrupt(
    patch: pytest.MonkeyPatch, owner: Any, name: str, other: Callable[[], None]
) -> list[threading.Thread]:
    """Has `other` begun on a thread, and given 0.1 s, when the function has made its first copy."""
    right, begun = getattr(owner, name), list[threading.Thread]()

    def copy(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = right(*args, **kwargs)
        if not begun and threading.current_thread() is threading.main_thread():
            begun.append(threading.Thread(target=other))
            begun[0].start()
            begun[0].join(0.1)
        return result

    patch.setattr(owner, name, copy)
    return begun


@pytest.mark.parametrize(
    ("owner", "name", "is_back"),
    [(torch, "cat", False), (Tensor, "contiguous", False), (Tensor, "clone", True)],
    ids=["packed", "turned", "put back"],
)
def test_no_write_is_lost_between_a_copy_and_its_taking_effect(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, is_back: bool
) -> None:
    stage.loras(1.0)
    expected = bits(stage.pipe)
    stage.loras(0.5)
    if is_back:
        stage.handle.begin_generation()
        stage.handle.enabled = False
    with monkeypatch.context() as patch:
        begun = _interrupt(patch, owner, name, lambda: stage.loras(1.0))
        stage.handle.begin_generation()
    begun[0].join(PATIENCE_S)
    assert stage.laid == {not is_back}
    assert same(bits(stage.pipe), expected)


def test_laying_waits_for_no_write_and_is_made_up_for_at_the_first_step(stage: Stage) -> None:
    with stage.written_elsewhere():
        stage.handle.begin_generation()
        assert stage.laid == {False}
    stage.step()
    assert stage.laid == {True}


def test_what_was_made_up_for_is_not_laid_again_at_a_later_step(stage: Stage) -> None:
    with stage.written_elsewhere():
        stage.handle.begin_generation()
    stage.step()
    assert not stage.handle._engine._measured.is_put_off


def test_putting_back_waits_for_no_write_and_is_made_up_for(stage: Stage) -> None:
    stage.handle.begin_generation()
    stage.handle.enabled = False
    with stage.written_elsewhere():
        stage.handle.begin_generation()
        assert stage.laid == {True}
    stage.handle.begin_generation()
    assert stage.laid == {False}


def test_who_detaches_waits_for_a_write(stage: Stage) -> None:
    stage.handle.begin_generation()
    with stage.written_elsewhere():
        leaving = threading.Thread(target=stage.handle.detach)
        leaving.start()
        leaving.join(0.05)
        assert stage.laid == {True}
    leaving.join(PATIENCE_S)
    assert stage.laid == {False}


def test_a_set_waits_until_weights_are_laid(stage: Stage) -> None:
    with stage.written_elsewhere():
        writer = threading.Thread(target=lambda: stage.loras(1.0))
        writer.start()
        writer.join(0.05)
        assert writer.is_alive()
    writer.join(PATIENCE_S)
    assert not writer.is_alive()
