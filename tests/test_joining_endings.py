"""Output blocks that join h and its skip by themselves: networks, failures and recordings are as before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_accel.blocks import res
from lib_accel.blocks.operators.joined_norm import JOINED_NORM
from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.graphs.recorder import Recorder
from lib_accel.layouts.entries import Inputs
from tests.fakes.joining import JOINS, Joining, Stage
from tests.fakes.launching import LaunchingStudio
from tests.fakes.lora import FakeLora, name_layers, random_network
from tests.fakes.models import difference, inputs, run, tiny_unet
from tests.fakes.tuning import FakeTuner, Taking
from tests.test_equality import LIMIT


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage.opened() as stage:
        yield stage


# Networks


def test_networks_are_merged_before_blocks_join() -> None:
    lora, unet = FakeLora(), tiny_unet()
    name_layers(unet)
    with lora.installed(), Stage.opened(unet, lora) as stage:
        bare = stage.draw()
        lora.loaded_networks = [random_network(unet, "style", seed=7)]
        first = stage.draw()
        assert difference(first, bare) > 0.01
        assert torch.equal(stage.draw(), first)
        assert stage.joins() == JOINS


# Failures


def test_an_implementation_that_fails_is_followed_by_plain_torch(stage: Stage) -> None:
    plain = stage.draw(Taking())
    failing = Taking(JOINED_NORM.name, lambda *args: 1 / 0)  # type: ignore[arg-type, return-value]
    assert torch.equal(stage.draw(failing), plain)
    assert failing.failures == ["join, group norm: division by zero"] * JOINS
    assert stage.engine.generation.host == 0


def test_a_block_that_fails_is_the_hosts_from_then_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    right, failed = res.res_block, []

    def fail(x: Any, *args: Any) -> Tensor:
        if isinstance(x, Tensor):
            return right(x, *args)
        failed.append(1)
        raise RuntimeError("bad kernel")

    stage.draw()
    total = stage.engine.generation.total
    monkeypatch.setattr(res, "res_block", fail)
    for _ in range(2):
        assert stage.joins() == 0
        done = stage.engine.generation
        assert (len(failed), done.total, done.host > 0) == (JOINS, total, True)


class Refusing(Taking):
    """Fails when it is asked."""

    def implementation(self, operator: Operator, args: Arguments) -> Implementation | None:
        if operator is JOINED_NORM:
            raise RuntimeError("no driver")
        return None


def test_who_cannot_say_what_joins_leaves_it_to_the_host(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    plain = stage.draw(Taking())
    assert torch.equal(stage.draw(Refusing()), plain)
    assert stage.engine.generation.host == 0
    assert caplog.text.count("joining failed: RuntimeError: no driver") == 1


def test_an_error_of_the_hosts_code_comes_out_as_it_is(stage: Stage) -> None:
    def fail(*args: Any, **kwargs: Any) -> Tensor:
        raise ValueError("theirs")

    stage.unet.output_blocks[1][1].transformer_blocks[0].attn2.forward = fail
    with pytest.raises(ValueError, match="theirs"):
        stage.draw()
    assert stage.joining.count == 2
    assert stage.engine.generation.host == 0


# Recordings


@pytest.fixture
def studio() -> Iterator[LaunchingStudio]:
    with LaunchingStudio.opened(tuner=FakeTuner(Joining())) as studio:
        yield studio


def test_a_whole_call_is_replayed_with_what_joins(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    for seed in range(5):
        given = inputs(seed=seed)
        assert difference(run(unet, given), studio.stock(unet, given)) < LIMIT
    assert (studio.report.captures, studio.report.replays) == (1, 3)
    joining: Any = studio.engine._measured._tuner.tuned(torch.device("cpu"))
    assert joining.count == 3 * JOINS  # as ever, once more, and recorded


def test_units_are_replayed_with_what_joins(studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, record, seen = tiny_unet(), Recorder.record, []

    def first_fails(self: Recorder, *args: Any) -> Any:
        seen.append(1)
        if len(seen) == 1:
            raise RuntimeError("too large")
        return record(self, *args)

    monkeypatch.setattr(Recorder, "record", first_fails)
    drawn = [studio.replayed_by(lambda: run(unet, inputs())) for _ in range(5)]
    assert drawn == [0, 0, 0, 0, 16]
    for seed in (2, 3):
        given = inputs(seed=seed)
        assert difference(run(unet, given), studio.stock(unet, given)) < LIMIT


def test_both_images_count_as_input() -> None:
    x, skip = torch.ones(2, 3, 4, 5), torch.ones(2, 6, 4, 5)
    assert Inputs(x).size_bytes == 4 * 120
    assert Inputs(x, skip=skip).size_bytes == 4 * 360
