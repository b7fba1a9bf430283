"""What was measured comes into effect between pictures, in the blocks that it is for, and goes with us."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lib_accel import measured
from lib_accel.blocks.adjacent import are_adjacent
from lib_accel.blocks.operators.attention import ATTENTION
from lib_accel.blocks.operators.gated_linear import GATED_LINEAR
from lib_accel.blocks.operators.layout import RESIDUAL_LAYOUT
from lib_accel.blocks.operators.operator import Implementation
from lib_accel.blocks.operators.projections import KEY, PROJECTIONS
from lib_accel.engine import Engine
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.measured import Measured
from lib_accel.options import Options
from lib_accel.packing import BY_OTHERS, pieces_of
from lib_accel.report import TuningCase, TuningReport
from tests.fakes.host import FakeHost
from tests.fakes.launching import LaunchingStudio
from tests.fakes.models import difference, inputs, run, tiny_unet
from tests.fakes.tuning import FakeTuner, Taking
from tests.test_equality import LIMIT

RESIDUAL_BLOCKS = 8  # of the tiny UNet
GATED = "gated linear"


def twice(*args: Any) -> torch.Tensor:
    return 2 * GATED_LINEAR.plain(*args)


class Stage:
    """An engine with a fake tuner, and a UNet that its host has."""

    def __init__(self, tuner: FakeTuner) -> None:
        self.host, self.unet, self.tuner = FakeHost(), tiny_unet(), tuner
        self.host.live = [("UNet", self.unet)]
        self.engine = Engine(self.host, tuner=tuner)  # type: ignore[arg-type]

    def draw(self, **options: Any) -> torch.Tensor:
        """A picture of one call."""
        self.host.asked = Options(launch="eager", **options)
        self.engine.begin_generation()
        return run(self.unet, inputs())

    def layouts(self) -> set[bool]:
        """Whether weights of 3x3 convolutions lie channels first."""
        weights = [m.weight for m in self.unet.modules() if isinstance(m, nn.Conv2d)]
        return {weight.is_contiguous() for weight in weights if weight.shape[2:] == (3, 3)}


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(FakeTuner())
    stage.engine.attach()
    yield stage
    stage.engine.detach()


LAST_IS_FASTER = {"torch": 2.0, "channels last": 1.0}
FIRST_IS_FASTER = {"torch": 1.0, "channels last": 2.0}


@pytest.mark.parametrize("code", ["auto", "measured", "compiled"])
def test_blocks_take_the_implementation_that_was_chosen(stage: Stage, code: str) -> None:
    plain = stage.draw(code="direct")
    stage.tuner.taking = Taking(GATED, twice)
    assert difference(stage.draw(code=code), plain) > 100 * LIMIT


@pytest.mark.parametrize("code", ["direct", "host"])
def test_other_codes_take_plain_torch(stage: Stage, code: str) -> None:
    plain = stage.draw(code="direct")
    stage.tuner.taking = Taking(GATED, twice)
    assert difference(stage.draw(code=code), plain) < LIMIT


def test_an_implementation_that_fails_is_followed_by_plain_torch(stage: Stage) -> None:
    def fail(*args: Any) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    plain = stage.draw(code="direct")
    stage.tuner.taking = Taking(GATED, fail)
    assert torch.equal(stage.draw(), plain)
    assert set(stage.tuner.taking.failures) == {"gated linear: no such kernel"}
    assert stage.engine.generation.host == 0


def test_lack_of_memory_is_no_fault_of_the_implementation(stage: Stage) -> None:
    def fail(*args: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("full")

    stage.tuner.taking = Taking(GATED, fail)
    stage.draw()
    assert stage.tuner.taking.failures == []
    assert stage.engine.generation.host > 0  # the host's own code needs less


def test_choices_come_into_effect_between_pictures_only(stage: Stage) -> None:
    stage.draw()
    applied = stage.tuner.applied
    run(stage.unet, inputs())
    assert stage.tuner.applied == applied
    stage.draw()
    assert stage.tuner.applied == applied + 1


def test_a_fault_between_pictures_ends_none(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    plain = stage.draw()
    stage.tuner.apply = lambda: 1 / 0  # type: ignore[assignment, return-value]
    assert all(torch.equal(stage.draw(), plain) for _ in range(2))
    assert stage.engine.generation.model_calls == 1
    assert caplog.text.count("what was measured failed: ZeroDivisionError") == 1


def test_other_choices_are_recorded_anew() -> None:
    unet, tuner = tiny_unet(), FakeTuner()
    with LaunchingStudio.opened(tuner=tuner) as studio:
        before = studio.warmed(unet)
        tuner.taking = Taking(GATED, twice)
        studio.engine.begin_generation()
        assert studio.launches.report().graphs == 0  # what nobody replays any more takes no memory
        first = run(unet, inputs())
        third = studio.warmed(unet)
    assert difference(first, before) > 100 * LIMIT
    assert difference(third, first) <= LIMIT
    assert studio.launches.report().captures == 2


# SageAttention


@pytest.fixture
def _sage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SageAttention for CPUs, which is plainly wrong."""
    wrong = Implementation("sage", lambda *args: 2 * ATTENTION.plain(*args))
    monkeypatch.setattr(measured, "SAGE_ATTENTION", wrong)
    monkeypatch.setattr(measured, "why_not_sage", lambda *args: ())


@pytest.mark.usefixtures("_sage")
def test_attention_is_by_sage_where_that_is_asked_for(stage: Stage) -> None:
    plain = stage.draw()
    assert difference(stage.draw(attention="sage"), plain) > 100 * LIMIT
    assert difference(stage.draw(), plain) < LIMIT


def test_the_report_says_why_attention_is_not_by_sage(stage: Stage) -> None:
    plain = stage.draw()
    assert difference(stage.draw(attention="sage"), plain) < LIMIT
    assert stage.engine.report().tuning.refused == ["device is cpu, needs cuda"]


def test_recordings_of_what_was_asked_for_are_kept() -> None:
    unet = tiny_unet()
    with LaunchingStudio.opened(tuner=FakeTuner(), attention="sage") as studio:
        studio.warmed(unet)
        studio.engine.begin_generation()
        assert studio.replayed_by(lambda: run(unet, inputs())) > 0


# Memory formats


def test_every_residual_block_is_noted_once_a_size(stage: Stage) -> None:
    for _ in range(3):
        stage.draw()
    names = [name for name, _ in stage.tuner.noted]
    assert names.count(RESIDUAL_LAYOUT.name) == RESIDUAL_BLOCKS


def test_weights_are_laid_channels_last_where_that_is_faster(stage: Stage) -> None:
    stage.tuner.ms = LAST_IS_FASTER
    first = stage.draw()
    assert stage.layouts() == {True}
    assert difference(stage.draw(), first) < LIMIT
    assert stage.layouts() == {False}
    assert [(each.model, each.is_channels_last) for each in stage.engine.report().tuning.formats] == [
        ("UNet", True)
    ]


def test_weights_stay_where_channels_last_is_slower(stage: Stage) -> None:
    stage.tuner.ms = FIRST_IS_FASTER
    stage.draw()
    stage.draw()
    assert stage.layouts() == {True}


@pytest.mark.parametrize("asked", [{"enabled": False}, {"code": "host"}, {"code": "direct"}], ids=str)
def test_who_does_not_want_it_has_the_weights_as_they_were(stage: Stage, asked: dict[str, Any]) -> None:
    stage.tuner.ms = LAST_IS_FASTER
    for _ in range(2):
        stage.draw()
    stage.draw(**asked)
    assert stage.layouts() == {True}


def test_weights_are_as_they_were_after_us(stage: Stage) -> None:
    stage.tuner.ms = LAST_IS_FASTER
    for _ in range(2):
        stage.draw()
    stage.engine.detach()
    assert stage.layouts() == {True}


# Packed projections

PACKED_IS_FASTER = {"torch": 2.0, "packed": 1.0}


def pieces_are_packed(stage: Stage) -> set[bool]:
    return set(map(are_adjacent, pieces_of(stage.unet)))


def test_every_attention_part_is_noted_once_a_size(stage: Stage) -> None:
    for _ in range(3):
        stage.draw()
    names = [name for name, _ in stage.tuner.noted]
    assert names.count(PROJECTIONS.name) == len(pieces_of(stage.unet))


@pytest.mark.parametrize("code", ["auto", "measured", "compiled"])
def test_attention_parts_are_noted_whatever_code_blocks_run(stage: Stage, code: str) -> None:
    stage.draw(code=code)
    noted = [args for name, args in stage.tuner.noted if name == PROJECTIONS.name]
    assert {id(args[KEY]) for args in noted} == {id(piece[-2]) for piece in pieces_of(stage.unet)}


def test_attention_that_stays_with_the_host_is_not_noted(stage: Stage) -> None:
    stage.host.attention = ["the host's attention is another"]
    stage.draw()
    assert PROJECTIONS.name not in [name for name, _ in stage.tuner.noted]


def test_projections_are_packed_where_that_is_faster(stage: Stage) -> None:
    stage.tuner.ms = PACKED_IS_FASTER
    first = stage.draw()
    assert pieces_are_packed(stage) == {False}
    assert difference(stage.draw(), first) < LIMIT
    assert pieces_are_packed(stage) == {True}
    (told,) = stage.engine.report().tuning.formats
    assert (told.is_packed, told.is_channels_last) == (True, False)
    assert told.packing_ms == {"torch": 2.0 * 14, "packed": 14.0}


@pytest.mark.parametrize("asked", [{"enabled": False}, {"code": "host"}, {"code": "direct"}], ids=str)
def test_who_does_not_want_it_has_projections_apart_again(stage: Stage, asked: dict[str, Any]) -> None:
    stage.tuner.ms = PACKED_IS_FASTER
    before = [weight.clone() for weight in stage.unet.parameters()]
    for _ in range(2):
        stage.draw()
    stage.draw(**asked)
    assert pieces_are_packed(stage) == {False}
    assert all(map(torch.equal, stage.unet.parameters(), before))


def test_projections_are_apart_after_us(stage: Stage) -> None:
    stage.tuner.ms = PACKED_IS_FASTER
    for _ in range(2):
        stage.draw()
    stage.engine.detach()
    assert pieces_are_packed(stage) == {False}


def test_both_ways_of_laying_weights_go_together(stage: Stage) -> None:
    stage.tuner.ms = LAST_IS_FASTER | PACKED_IS_FASTER
    for _ in range(2):
        stage.draw()
    assert (pieces_are_packed(stage), stage.layouts()) == ({True}, {False})
    stage.host.asked = Options(code="direct")
    stage.engine.begin_generation()
    assert (pieces_are_packed(stage), stage.layouts()) == ({False}, {True})


def test_another_engine_leaves_packed_projections_alone(stage: Stage) -> None:
    stage.tuner.ms = PACKED_IS_FASTER
    for _ in range(2):
        stage.draw()
    other = Measured(stage.host, Verdicts(None), lambda device: None, tuner=stage.tuner, changed=lambda: None)
    other.apply(Options(), stage.host.models())
    (told,) = other.report().formats
    assert (told.is_packed, told.packing_reason) == (True, BY_OTHERS)
    other.cancel()
    assert pieces_are_packed(stage) == {True}


@pytest.mark.parametrize("ms", [LAST_IS_FASTER, PACKED_IS_FASTER], ids=["turned", "packed"])
def test_a_recording_does_not_read_weights_that_were_laid_elsewhere(ms: dict[str, float]) -> None:
    unet, tuner, host = tiny_unet(), FakeTuner(), FakeHost()
    host.live = [("UNet", unet)]
    with LaunchingStudio.opened(host, tuner=tuner) as studio:
        before = studio.warmed(unet)
        tuner.ms = ms
        studio.engine.begin_generation()
        assert all(difference(studio.warmed(unet), before) <= LIMIT for _ in range(2))
    assert studio.launches.report().captures == 2


# On request


def test_a_warm_up_has_everything_measured(stage: Stage) -> None:
    stage.draw()
    assert stage.engine.warm_up()
    assert stage.tuner.finished == 1


def test_what_was_measured_can_be_forgotten(stage: Stage) -> None:
    assert stage.engine.forget_choices() == 3


def test_detaching_stops_what_is_measured(stage: Stage) -> None:
    stage.engine.detach()
    assert stage.tuner.cancelled == 1


def test_the_report_leaves_out_questions_that_no_block_calls(stage: Stage) -> None:
    names = (GATED, RESIDUAL_LAYOUT.name, PROJECTIONS.name)
    cases = [TuningCase(name, "", "float16", "cuda:0", "torch", "torch", "") for name in names]
    stage.tuner.report = lambda: TuningReport(cases)  # type: ignore[method-assign]
    assert [case.operator for case in stage.engine.report().tuning.cases] == [GATED]


def test_the_report_tells_what_is_to_be_measured(stage: Stage) -> None:
    stage.tuner.pending = 4
    assert stage.engine.report().as_dict()["tuning"]["pending"] == 4
