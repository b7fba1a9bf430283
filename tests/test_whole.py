"""Whether a whole call may be one recording: who has a hand in it has his way, and the rest is replayed."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from torch import Tensor, nn

from lib_accel.audit import ClassWatch
from lib_accel.layouts import ENTRIES
from lib_accel.layouts.entries import Unit
from lib_accel.layouts.reading import class_name
from lib_accel.whole import Frame
from tests.fakes.controlnet import FakeIPAdapter, FakeLLLite
from tests.fakes.extensions import Scaler
from tests.fakes.launching import LaunchingStudio
from tests.fakes.models import difference, inputs, run, tiny_unet
from tests.fakes.vae import nobody
from tests.test_equality import LIMIT, ResizingTorch
from tests.test_launching import BLOCKS, CLOSE, CONTAINERS

UNITS = {entry.path: entry for entry in ENTRIES if isinstance(entry, Unit)}


@pytest.fixture
def studio() -> Iterator[LaunchingStudio]:
    with LaunchingStudio.opened() as studio:
        yield studio


# The frame


def frame_of(model: nn.Module) -> Frame:
    units = {each: UNITS[name] for each in model.modules() if (name := class_name(type(each))) in UNITS}
    return Frame(model, units, nobody, ClassWatch())


def with_a_hook(unet: Any) -> None:
    unet.output_blocks[1].register_forward_hook(lambda module, args, out: out)


def with_a_hook_on_the_model(unet: Any) -> None:
    unet.register_forward_pre_hook(lambda module, args: None)


def with_a_hook_on_a_list(unet: Any) -> None:
    unet.input_blocks.register_forward_hook(lambda module, args, out: out)


def with_a_forward(unet: Any) -> None:
    unet.middle_block.forward = lambda *args: args[0]


def with_a_forward_of_the_model(unet: Any) -> None:
    unet.forward = MethodType(lambda self, x, *args: x, unet)


def with_another_container(unet: Any) -> None:
    unet.input_blocks[1] = Scaler(unet.input_blocks[1], 0.5)


def with_blocks_exchanged(unet: Any) -> None:
    unet.output_blocks[0], unet.output_blocks[1] = unet.output_blocks[1], unet.output_blocks[0]


def with_another_value(unet: Any) -> None:
    unet.num_classes = 7


def with_another_padding(unet: Any) -> None:
    unet.out[2].padding_mode = "circular"


def with_a_flag_on_a_container(unet: Any) -> None:
    unet.middle_block.is_scaled = True


def with_an_attribute_less(unet: Any) -> None:
    del unet.model_channels


CHANGES = [
    with_a_hook,
    with_a_hook_on_the_model,
    with_a_hook_on_a_list,
    with_a_forward,
    with_a_forward_of_the_model,
    with_another_container,
    with_blocks_exchanged,
    with_another_value,
    with_another_padding,
    with_a_flag_on_a_container,
    with_an_attribute_less,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_frame_does_not_hold_when_anything_around_the_units_changes(change: Callable[[Any], None]) -> None:
    unet = tiny_unet()
    frame = frame_of(unet)
    assert frame.holds()
    assert frame.failure is None
    change(unet)
    assert not frame.holds()


@pytest.mark.parametrize("change", CHANGES[:5])
def test_a_frame_of_what_does_more_than_its_class_says_so(change: Callable[[Any], None]) -> None:
    unet = tiny_unet()
    change(unet)
    assert "forward" in str(frame_of(unet).failure)


def test_a_frame_has_another_serial_each_time() -> None:
    unet = tiny_unet()
    assert frame_of(unet).serial != frame_of(unet).serial


def test_what_is_inside_of_units_is_not_the_frames() -> None:
    unet: Any = tiny_unet()
    frame = frame_of(unet)
    unet.middle_block[0].in_layers[2].register_forward_hook(lambda *args: None)
    assert frame.holds()
    inside = {id(weight) for unit in frame.units for weight in unit.parameters()}
    own = [weight for weight in unet.parameters() if id(weight) not in inside]
    assert {id(weight) for weight in own} == {id(weight) for weight in frame.weights()}
    assert own


def test_marks_of_the_lora_extension_do_not_end_a_frame() -> None:
    unet: Any = tiny_unet()
    unet.time_embed[0].network_current_names = ()
    frame = frame_of(unet)
    unet.time_embed[0].network_current_names = (("style", 1.0, 1.0, None),)
    unet.time_embed[0].network_weights_backup = torch.ones(2)
    assert frame.holds()


def test_a_frame_holds_its_model_weakly() -> None:
    unet = tiny_unet()
    frame = frame_of(unet)
    gone = weakref.ref(unet)
    del unet
    gc.collect()
    assert gone() is None
    assert not frame.holds()


# In an engine


def blocks_of(studio: LaunchingStudio, unet: nn.Module, *, calls: int = 3) -> int:
    """How many blocks the latest of some calls replays, each of which is right."""
    for seed in range(calls):
        given = inputs(seed=seed)
        expected = studio.stock(unet, given)
        before = studio.engine.generation.replayed
        assert difference(run(unet, given), expected) < LIMIT
    return studio.engine.generation.replayed - before


def on_a_container(unet: Any) -> Callable[[], Any]:
    return unet.middle_block.register_forward_hook(lambda module, args, out: out * 1.5).remove


def on_a_container_before(unet: Any) -> Callable[[], Any]:
    return unet.middle_block.register_forward_pre_hook(lambda module, args: (args[0] * 1.5, *args[1:])).remove


def instead_of_a_container(unet: Any) -> Callable[[], Any]:
    block = unet.output_blocks[1]
    inner = block.forward
    block.forward = lambda *args: inner(*args) * 1.5
    return lambda: delattr(block, "forward")


def scaled_by(unet: Any, factor: float) -> Callable[[], Any]:
    inner = unet.forward
    unet.forward = lambda *args, **kwargs: inner(*args, **kwargs) * factor
    return lambda: delattr(unet, "forward")


HANDS: list[Callable[[Any], Callable[[], Any]]] = [
    on_a_container,
    on_a_container_before,
    instead_of_a_container,
    functools.partial(scaled_by, factor=1.5),
]


@pytest.mark.parametrize("hand", HANDS)
def test_with_a_hand_of_others_units_are_replayed_and_without_it_the_whole(
    studio: LaunchingStudio, hand: Callable[[Any], Callable[[], Any]]
) -> None:
    unet = tiny_unet()
    assert blocks_of(studio, unet) == BLOCKS
    undo = hand(unet)
    assert blocks_of(studio, unet) == CONTAINERS
    undo()
    assert blocks_of(studio, unet) == BLOCKS
    assert studio.engine.generation.host == 0


@pytest.mark.parametrize("place", [1, 2])
def test_a_foreign_attention_costs_its_own_unit_only(studio: LaunchingStudio, place: int) -> None:
    unet: Any = tiny_unet()
    assert blocks_of(studio, unet) == BLOCKS
    attention = unet.middle_block[1].transformer_blocks[0].attn2
    adapter = FakeIPAdapter()
    adapter.hook(attention)
    assert blocks_of(studio, unet) == CONTAINERS - 3
    adapter.strength = 2.0 * place  # which changes from step to step
    assert blocks_of(studio, unet, calls=1) == CONTAINERS - 3
    adapter.clear()
    assert blocks_of(studio, unet) == BLOCKS


def test_a_closure_that_knows_the_step_is_never_frozen(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    lite = FakeLLLite()
    lite.hook(unet, unet.middle_block[1].transformer_blocks[0].attn1.to_q)
    for percent in (0.1, 0.3, 0.5, 0.7, 0.9):
        unet.current_sampling_percent = percent
        replayed = blocks_of(studio, unet, calls=1)
    assert replayed == CONTAINERS - 3


class CountingWrapper(nn.Module):
    """Stands in a list of blocks, around the block that was there; what it does is kept elsewhere."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.state = block, {"step": 0.0}

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.block(x * (1 + self.state["step"]), *args)


def test_a_wrapper_that_counts_steps_is_never_frozen(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    unet.input_blocks[1] = CountingWrapper(unet.input_blocks[1])
    for step in range(4):
        unet.input_blocks[1].state["step"] = 0.3 * step
        assert blocks_of(studio, unet, calls=1) <= CONTAINERS


def test_wrappers_that_come_and_go_between_steps_are_right(studio: LaunchingStudio) -> None:
    """As Kohya Hires.fix: an input block and its output block at another size for some steps."""
    unet: Any = tiny_unet()
    block, its_output = unet.input_blocks[1], unet.output_blocks[-2]
    assert blocks_of(studio, unet) == BLOCKS
    for down, up in ((0.5, 2.0), (0.75, 1.34), (0.5, 2.0)):
        unet.input_blocks[1], unet.output_blocks[-2] = Scaler(block, down), Scaler(its_output, up)
        assert blocks_of(studio, unet) == CONTAINERS
    unet.input_blocks[1], unet.output_blocks[-2] = block, its_output
    for _ in range(30):  # that it stays as it is must show first
        run(unet, inputs())
    assert blocks_of(studio, unet) == BLOCKS


def test_a_value_that_changes_each_step_leaves_units_to_be_replayed(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    for step in range(8):
        unet.current_sampling_percent = 0.1 * step
        replayed = blocks_of(studio, unet, calls=1)
    assert replayed >= CONTAINERS


def test_tiling_and_back(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    plain = studio.stock(unet)
    assert blocks_of(studio, unet) == BLOCKS
    convolutions = [each for each in unet.modules() if isinstance(each, nn.Conv2d)]
    for each in convolutions:
        each.padding_mode = "circular"
    assert blocks_of(studio, unet) == BLOCKS
    assert difference(run(unet, inputs()), plain) > 0.01
    for each in convolutions:
        each.padding_mode = "zeros"
    assert blocks_of(studio, unet) == BLOCKS
    assert difference(run(unet, inputs()), plain) < LIMIT


def test_freeu_is_not_frozen(studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, settings = tiny_unet(), {"scale": 1.0}
    home = ResizingTorch()
    monkeypatch.setattr(ldm_openaimodel, "th", home)
    studio.host.trusted.append(ResizingTorch.cat)
    assert blocks_of(studio, unet) == BLOCKS

    def cat(tensors: Any, *args: Any, original_function: Any, **kwargs: Any) -> Tensor:
        h, skip = tensors
        h[:, : h.shape[1] // 2] *= settings["scale"]
        return original_function((h, skip * settings["scale"]), *args, **kwargs)

    home.cat = functools.partial(cat, original_function=home.cat)  # type: ignore[method-assign]
    for scale in (1.2, 1.2, 1.2, 1.4):
        settings["scale"] = scale
        replayed = blocks_of(studio, unet, calls=1)
    assert replayed == CONTAINERS
    del home.cat
    assert blocks_of(studio, unet, calls=1) == BLOCKS


def test_sizes_that_do_not_halve_are_replayed_with_the_hosts_cat(
    studio: LaunchingStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ldm_openaimodel, "th", ResizingTorch())
    studio.host.trusted.append(ResizingTorch.cat)
    unet, given = tiny_unet(), inputs(size=(9, 7))
    expected = studio.stock(unet, given)
    studio.warmed(unet, given)
    assert studio.replayed_by(lambda: run(unet, given)) == BLOCKS
    assert difference(run(unet, given), expected) < LIMIT


@pytest.mark.parametrize("reason", ["a hypernetwork is active"])
def test_attention_that_stays_with_the_host_leaves_the_other_units(
    studio: LaunchingStudio, reason: str
) -> None:
    unet = tiny_unet()
    assert blocks_of(studio, unet) == BLOCKS
    studio.host.attention = [reason]
    assert 0 <= blocks_of(studio, unet) < CONTAINERS
    studio.host.attention = []
    assert blocks_of(studio, unet) == BLOCKS


def test_a_block_that_broke_leaves_the_other_units(studio: LaunchingStudio) -> None:
    unet: Any = tiny_unet()
    assert blocks_of(studio, unet) == BLOCKS
    studio.engine._bindings.broken[unet.middle_block] = "failed: RuntimeError: bad kernel"
    assert blocks_of(studio, unet) == CONTAINERS - 3
    assert studio.report.reasons["not all blocks of UNetModel are ours"] >= 1


def test_a_hook_on_every_module_leaves_all_to_the_host(studio: LaunchingStudio) -> None:
    unet = tiny_unet()
    assert blocks_of(studio, unet) == BLOCKS
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *rest: seen.append(type(module).__name__)
    )
    try:
        assert blocks_of(studio, unet) == 0
    finally:
        handle.remove()
    assert "ResBlock" in seen
    assert difference(run(unet, inputs()), studio.eager(unet)) <= CLOSE


@pytest.mark.parametrize("scales", [[1.0, 0.5], {"b1": 1.0}])
def test_a_list_or_dictionary_of_numbers_that_is_changed_in_place_is_seen(scales: Any) -> None:
    unet: Any = tiny_unet()
    unet.scales = scales
    frame = frame_of(unet)
    assert frame.holds()
    scales[next(iter(scales)) if isinstance(scales, dict) else 0] = 1.4
    assert not frame.holds()
