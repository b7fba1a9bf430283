"""A foreign loop over a UNet's blocks, as sd-webui-controlnet's: units are replayed one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from torch import Tensor

from tests.fakes.controlnet import Control, FakeUNetHook, clear_reference, hook_reference
from tests.fakes.host import FakeHost
from tests.fakes.launching import LaunchingStudio
from tests.fakes.lora import FakeLora, name_layers, random_network
from tests.fakes.models import (
    Inputs,
    difference,
    inputs,
    run,
    sgm_openaimodel,
    tiny_controlnet,
    tiny_sgm_unet,
    tiny_unet,
)
from tests.test_equality import LIMIT
from tests.test_launching import BLOCKS, CONTAINERS

OF_CONTROL = 9  # blocks of a control model in containers that are worth a recording


@pytest.fixture
def studio() -> Iterator[LaunchingStudio]:
    with LaunchingStudio.opened() as studio:
        yield studio


def hint(seed: int = 0, batch: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def controlled(unet: Any, *controls: Control) -> Iterator[None]:
    hook = FakeUNetHook(unet, controls)
    hook.hook()
    try:
        yield
    finally:
        hook.restore()


def right_calls(studio: LaunchingStudio, unet: Any, given: list[Inputs]) -> list[int]:
    """Blocks that each call replays; what it gives is stock's, and stays so while the others run."""
    expected = [studio.stock(unet, each) for each in given]
    found, blocks = [], []
    for each in given:
        mine = each.copy()
        blocks.append(studio.replayed_by(lambda mine=mine: found.append(run(unet, mine))))
        for tensor in mine:
            if tensor is not None:
                tensor.fill_(1e6)
    assert max(map(difference, found, expected)) < LIMIT
    return blocks


FAMILIES: dict[str, Any] = {
    "ldm": (tiny_unet, lambda: ldm_openaimodel, {}),
    "sgm": (tiny_sgm_unet, sgm_openaimodel, {"vector": True}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_units_of_both_models_are_replayed_in_a_foreign_loop(studio: LaunchingStudio, family: str) -> None:
    make, home, form = FAMILIES[family]
    unet, control = make(), tiny_controlnet(home())
    with controlled(unet, Control(control, hint())):
        blocks = right_calls(studio, unet, [inputs(seed=seed, **form) for seed in range(6)])
    assert blocks[:2] == [0, 0]
    assert len(set(blocks[2:])) == 1
    assert blocks[-1] > 0
    assert studio.engine.generation.host == 0


def test_small_units_are_not_worth_a_recording(studio: LaunchingStudio) -> None:
    unet, control = tiny_unet(), tiny_controlnet()
    with controlled(unet, Control(control, hint())):
        blocks = right_calls(studio, unet, [inputs(seed=seed) for seed in range(4)])
    recorded = set(studio.launches._sites)
    assert recorded
    assert not recorded & {*control.zero_convs, control.middle_block_out, control.input_blocks[0]}
    assert not recorded & {unet.input_blocks[0], unet.input_blocks[2]}
    assert {control.middle_block, control.input_blocks[1], unet.middle_block} <= recorded
    assert blocks[-1] == sum(studio.engine._bindings.known_unit(unit).size for unit in recorded)


def test_prompts_of_two_lengths_take_turns(studio: LaunchingStudio) -> None:
    unet, control = tiny_unet(), tiny_controlnet()
    with controlled(unet, Control(control, hint())):
        given = [inputs(tokens=tokens, seed=seed) for seed in range(4) for tokens in (78, 155)]
        blocks = right_calls(studio, unet, given)
    assert blocks[-1] == blocks[-2] > 0


def test_two_controls_share_a_model(studio: LaunchingStudio) -> None:
    unet, control = tiny_unet(), tiny_controlnet()
    with controlled(unet, Control(control, hint(1)), Control(control, hint(2), weight=0.4)):
        right_calls(studio, unet, [inputs(seed=seed) for seed in range(5)])
    assert studio.report.replays > 0


def test_with_and_without_control_in_turn(studio: LaunchingStudio) -> None:
    unet, control = tiny_unet(), tiny_controlnet()
    for turn in range(3):
        with controlled(unet, Control(control, hint(turn))):
            with_control = right_calls(studio, unet, [inputs(seed=seed) for seed in range(3)])
        del unet.forward
        without = right_calls(studio, unet, [inputs(seed=seed) for seed in range(3)])
    assert with_control[-1] > CONTAINERS
    assert without == [0, 0, BLOCKS] or without[-1] == BLOCKS


def test_what_the_loop_adds_in_place_reaches_no_memory_of_ours(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    given, block = inputs(), unet.middle_block
    x, emb = torch.randn(2, 128, 4, 4), torch.randn(2, 256)
    with torch.no_grad(), studio.host.switched_off():
        expected = block(x, emb, given.context)
    for _ in range(5):
        with torch.no_grad():
            result = block(x, emb.clone(), given.context)
            assert difference(result, expected) < LIMIT
            result += 1e6
    assert studio.report.replays == 3


def test_skips_stay_as_they_are_in_a_list(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    block, emb, context = unet.middle_block, torch.randn(2, 256), inputs().context
    images = [torch.randn(2, 128, 4, 4) for _ in range(5)]
    with torch.no_grad():
        kept = [block(x, emb, context) for x in images]
        with studio.host.switched_off():
            expected = [block(x, emb, context) for x in images]
    assert max(map(difference, kept, expected)) < LIMIT


def test_reference_leaves_the_units_it_does_not_touch(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    given = [inputs(seed=seed) for seed in range(3)]
    assert right_calls(studio, unet, given)[-1] == BLOCKS
    hook_reference([unet.middle_block[1].transformer_blocks[0]], [unet.output_blocks[0]])
    blocks = right_calls(studio, unet, given)
    assert 0 < blocks[-1] < CONTAINERS
    clear_reference(unet)
    assert right_calls(studio, unet, given)[-1] >= CONTAINERS


def test_loras_in_both_models_need_nothing_new() -> None:
    lora, unet, control = FakeLora(), tiny_unet(), tiny_controlnet()
    for model in (unet, control):
        name_layers(model)
    network = random_network(unet, "style", seed=7, with_biases=False)
    given = [inputs(seed=seed) for seed in range(3)]
    with lora.installed(), LaunchingStudio.opened(FakeHost(lora)) as studio:
        with controlled(unet, Control(control, hint())):
            right_calls(studio, unet, given)
            before = studio.report.captures
            for strength in (1.0, 0.5):
                network.unet_multiplier, lora.loaded_networks = strength, [network]
                assert right_calls(studio, unet, given[:1])[-1] > CONTAINERS
        assert studio.report.captures == before


def test_a_sliced_batch_is_another_size(studio: LaunchingStudio) -> None:
    unet, control = tiny_unet(), tiny_controlnet()
    with controlled(unet, Control(control, hint(batch=1))):
        right_calls(studio, unet, [inputs(batch=1, seed=seed) for seed in range(3)])
    with controlled(unet, Control(control, hint(batch=2))):
        assert right_calls(studio, unet, [inputs(seed=seed) for seed in range(3)])[-1] > CONTAINERS
