"""One pipeline, on which stock and ours take turns without meeting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from lib_accel.bench.comparison import relative_l2
from lib_accel.bench.jobs import request
from lib_accel.bench.lora import fingerprint
from lib_accel.bench.models import pipeline
from lib_accel.bench.networks import random_network
from lib_accel.bench.suites import Case
from lib_accel.bench.timing import ACCELERATED, STOCK
from lib_accel.demo.errors import DemoError
from lib_accel.demo.stage import Lora, Stage
from lib_accel.patching import is_ours

ASKED = request(Case("text to image")) | {"output_type": "latent"}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline("sd1")


@pytest.fixture
def stage(pipe: Any) -> Iterator[Stage]:
    """With two LoRAs at hand, and none on."""
    networks = [random_network(pipe.unet, seed=seed) for seed in range(2)]
    stage = Stage(pipe, ASKED, [Lora(f"LoRA {n}", network, 0.7) for n, network in enumerate(networks)])
    yield stage
    stage.leave()


def _adapters(pipe: Any) -> list[str]:
    """Names of the adapters on the UNet."""
    return sorted(getattr(pipe.unet, "peft_config", {}))


def _is_patched() -> bool:
    return is_ours(diffusers.UNet2DConditionModel.forward)


def test_on_stocks_turn_adapters_are_on_and_nothing_of_ours(stage: Stage, pipe: Any) -> None:
    stage.wear(2)
    stage.run(ACCELERATED, 2)
    stage.run(STOCK, 2)
    assert (len(_adapters(pipe)), _is_patched()) == (2, False)


def test_on_our_turn_no_adapter_is_on(stage: Stage, pipe: Any) -> None:
    stage.wear(2)
    stage.run(STOCK, 2)
    stage.run(ACCELERATED, 2)
    assert (_adapters(pipe), _is_patched()) == ([], True)


def test_both_sides_make_the_same_picture_with_loras(stage: Stage) -> None:
    stage.wear(2)
    stock, ours = (stage.run(side, 3)[1] for side in (STOCK, ACCELERATED))
    assert 0 < relative_l2(ours, stock) < 1e-5


@pytest.mark.parametrize("side", [STOCK, ACCELERATED])
def test_loras_move_the_picture(stage: Stage, side: str) -> None:
    without = stage.run(side, 2)[1]
    stage.wear(1)
    assert relative_l2(stage.run(side, 2)[1], without) > 0.01


@pytest.mark.parametrize("side", [STOCK, ACCELERATED])
def test_the_pipeline_is_left_as_it_was_given(stage: Stage, pipe: Any, side: str) -> None:
    bits = fingerprint(pipe.unet)
    stage.wear(2)
    stage.run(side, 2)
    stage.leave()
    assert (fingerprint(pipe.unet), _adapters(pipe), _is_patched()) == (bits, [], False)


def test_both_sides_read_a_lora_from_its_file(pipe: Any, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file(random_network(pipe.unet, seed=0), file)
    stage = Stage(pipe, ASKED, [Lora(file.name, str(file), 0.7)])
    stage.wear(1)
    stock, ours = (stage.run(side, 2)[1] for side in (STOCK, ACCELERATED))
    stage.leave()
    assert 0 < relative_l2(ours, stock) < 1e-5


def test_fewer_loras_than_asked_for_are_worn_several_times(stage: Stage, pipe: Any) -> None:
    stage.wear(5)
    stage.run(STOCK, 2)
    assert len(_adapters(pipe)) == 5


def test_a_second_run_of_the_same_side_changes_no_loras(stage: Stage) -> None:
    stage.wear(1)
    stage.run(STOCK, 2)
    stage.switch_ms.clear()
    stage.run(STOCK, 2)
    assert stage.switch_ms == {}


def test_blocks_are_those_of_our_latest_run(stage: Stage) -> None:
    for steps in (3, 2):
        stage.run(ACCELERATED, steps)
    assert stage.blocks == {"by_speed": {"direct": 90, "compiled": 0, "host": 0}, "reasons": {}}


def test_a_lora_that_diffusers_does_not_know_is_refused_by_name(pipe: Any) -> None:
    stage = Stage(pipe, ASKED, [Lora("odd.safetensors", {"nonsense": torch.ones(1)}, 1.0)])
    stage.wear(1)
    with pytest.raises(DemoError, match=r"^diffusers cannot load odd\.safetensors, .* \(ValueError: "):
        stage.run(STOCK, 2)
