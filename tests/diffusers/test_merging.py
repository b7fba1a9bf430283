"""LoRAs of a pipeline are merged by what was chosen for that, where something was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lib_accel.engine import Engine
from lib_accel.hosts.diffusers import Handle
from tests.diffusers import models
from tests.diffusers.test_loras import bits, lora_for, same
from tests.lora.together import StandIn, taking

Accelerate = Callable[..., Handle]


def test_loras_are_merged_by_what_the_engine_has_chosen(
    accelerate: Accelerate, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, pipe = StandIn(), models.own_pipeline()
    tuned = taking(way)
    monkeypatch.setattr(Engine, "merging", lambda engine, device: tuned)
    before, handle = bits(pipe), accelerate(pipe)
    fused = handle.set_loras([(lora_for(pipe), 1.0, 0.5)])
    assert len(way.sizes) < sum(way.sizes) == fused.layers
    handle.set_loras([])
    assert same(bits(pipe), before)
