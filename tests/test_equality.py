"""The picture with the engine is the picture without it, and every block of it is ours."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from torch import Tensor, nn

from lib_accel.engine import Engine
from tests.fakes.controlnet import Control, FakeUNetHook
from tests.fakes.host import attached
from tests.fakes.models import (
    CHANNELS,
    Inputs,
    difference,
    inputs,
    run,
    sgm_openaimodel,
    tiny_controlnet,
    tiny_inpaint_unet,
    tiny_sd2_unet,
    tiny_sgm_unet,
    tiny_unet,
)

LIMIT = 1e-5  # relative L2, float32

MAKERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "sd1": (tiny_unet, {}),
    "sd2": (tiny_sd2_unet, {}),
    "inpaint": (tiny_inpaint_unet, {"channels": 9}),
    "sgm": (tiny_sgm_unet, {"vector": True}),
}


class ResizingTorch:
    """torch with the webui's `cat`, which fits its first tensor to the second (modules/sd_hijack_unet.py)."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def cat(self, tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        a, b = tensors
        if a.shape[-2:] != b.shape[-2:]:
            a = torch.nn.functional.interpolate(a, b.shape[-2:], mode="nearest")
        return torch.cat((a, b), *args, **kwargs)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with attached() as engine:
        engine.detach()
        yield engine


@pytest.fixture
def _resizing_cat(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ldm_openaimodel, sgm_openaimodel()):
        monkeypatch.setattr(module, "th", ResizingTorch())


def assert_same_and_all_direct(engine: Engine, unet: nn.Module, given: Inputs) -> None:
    """Compares two calls with the engine, one that binds and one that is bound, with one without."""
    stock = run(unet, given)
    engine.attach()
    for _ in range(2):
        engine.begin_generation()
        assert difference(run(unet, given), stock) <= LIMIT
        assert (engine.generation.host, dict(engine.generation.reasons)) == (0, {})
        assert engine.generation.direct > 0
        assert engine.generation.model_calls == 1


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_unet_is_the_same(engine: Engine, kind: str, batch: int) -> None:
    make, shape = MAKERS[kind]
    assert_same_and_all_direct(engine, make(), inputs(batch, **shape))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("size", [(9, 7), (8, 12), (5, 16)])
@pytest.mark.usefixtures("_resizing_cat")
def test_any_size_is_the_same(engine: Engine, kind: str, size: tuple[int, int]) -> None:
    make, shape = MAKERS[kind]
    assert_same_and_all_direct(engine, make(), inputs(size=size, **shape))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("tokens", [77, 154])
def test_any_length_of_prompt_is_the_same(engine: Engine, kind: str, tokens: int) -> None:
    make, shape = MAKERS[kind]
    assert_same_and_all_direct(engine, make(), inputs(tokens=tokens, **shape))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_view_of_the_context_is_the_same(engine: Engine, kind: str) -> None:
    make, shape = MAKERS[kind]
    given = inputs(tokens=78, **shape)
    view = given.context[:, 1:, :]
    assert not view.is_contiguous()
    assert_same_and_all_direct(engine, make(), given._replace(context=view))


def test_channels_last_latents_are_the_same(engine: Engine) -> None:
    given = inputs()
    x = given.x.to(memory_format=torch.channels_last)
    assert_same_and_all_direct(engine, tiny_unet(), given._replace(x=x))


def test_channels_last_weights_are_the_same(engine: Engine) -> None:
    assert_same_and_all_direct(engine, tiny_unet().to(memory_format=torch.channels_last), inputs())


def test_keyword_arguments_are_the_same(engine: Engine) -> None:
    unet, given = tiny_sgm_unet(), inputs(vector=True)
    stock = run(unet, given)
    engine.attach()
    with torch.no_grad():
        ours = unet(x=given.x, timesteps=given.timesteps, context=given.context, y=given.y)
    assert difference(ours, stock) <= LIMIT
    assert engine.generation.host == 0
    assert engine.generation.direct > 0


def test_a_list_of_contexts_gives_each_depth_its_own(engine: Engine) -> None:
    unet, given = tiny_sgm_unet(), inputs(vector=True)
    contexts = [given.context, given.context.flip(1) * 2]
    stock = run(unet, given._replace(context=contexts))
    assert difference(stock, run(unet, given)) > 1e-3
    assert_same_and_all_direct(engine, unet, given._replace(context=contexts))


def test_disabled_self_attention_is_the_same(engine: Engine) -> None:
    unet = tiny_unet(disable_self_attentions=(True, False), disable_middle_self_attn=True)
    assert_same_and_all_direct(engine, unet, inputs())


def test_two_shapes_in_turn_are_the_same(engine: Engine) -> None:
    unet = tiny_unet()
    given = [inputs(1, tokens=154), inputs(2), inputs(2, size=(16, 8))] * 2
    stock = [run(unet, each) for each in given]
    engine.attach()
    assert max(difference(run(unet, each), s) for each, s in zip(given, stock, strict=True)) <= LIMIT
    assert engine.generation.host == 0


@pytest.mark.parametrize("home", [ldm_openaimodel, sgm_openaimodel()], ids=["ldm", "sgm"])
def test_control_model_is_the_same(engine: Engine, home: types.ModuleType) -> None:
    control, given, hint = tiny_controlnet(home), inputs(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        stock = control(given.x, hint, given.timesteps, given.context)
        engine.attach()
        for _ in range(2):
            ours = control(given.x, hint, given.timesteps, given.context)
            assert max(map(difference, ours, stock)) <= LIMIT
    assert (engine.generation.host, engine.generation.direct > 0) == (0, True)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("home", [ldm_openaimodel, sgm_openaimodel()], ids=["ldm", "sgm"])
def test_unet_under_control_is_the_same(engine: Engine, kind: str, home: types.ModuleType) -> None:
    make, shape = MAKERS[kind]
    unet, given = make(), inputs(tokens=78, **shape)
    plain = run(unet, given._replace(context=given.context[:, 1:, :]))
    hook = FakeUNetHook(unet, [_control(home, shape), _control(home, shape, weight=0.5)])
    hook.hook()
    assert difference(run(unet, given), plain) > 1e-2
    assert_same_and_all_direct_under_control(engine, unet, given)


def _control(home: types.ModuleType, shape: dict[str, Any], weight: float = 1.0) -> Control:
    control = tiny_controlnet(home)
    if "channels" in shape:  # an inpainting model's control model sees the latents alone
        control.register_forward_pre_hook(lambda module, args: (args[0][:, :4], *args[1:]))
    return Control(control, torch.randn(2, 3, 64, 64), weight)


def assert_same_and_all_direct_under_control(engine: Engine, unet: nn.Module, given: Inputs) -> None:
    stock = run(unet, given)
    engine.attach()
    for _ in range(2):
        engine.begin_generation()
        assert difference(run(unet, given), stock) <= LIMIT
        assert (engine.generation.host, engine.generation.direct > 0) == (0, True)
        assert engine.generation.model_calls == 3  # the UNet and two control models


@pytest.mark.parametrize("kind", MAKERS)
def test_inputs_are_never_changed(engine: Engine, kind: str) -> None:
    make, shape = MAKERS[kind]
    unet, given = make(), inputs(**shape)
    before = given.copy()
    engine.attach()
    run(unet, given)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True) if a is not None)


@pytest.mark.parametrize("kind", MAKERS)
def test_no_block_changes_what_it_is_given(engine: Engine, kind: str) -> None:
    make, shape = MAKERS[kind]
    unet = make()
    calls = _record_calls(unet)
    engine.attach()
    run(unet, inputs(**shape))
    assert len(calls) == len(unet.input_blocks) + 1 + len(unet.output_blocks)
    assert all(torch.equal(a, b) for given, copies in calls for a, b in zip(given, copies, strict=True))


def _record_calls(unet: Any) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Arguments of each block's call, and copies made before it."""
    calls: list[Any] = []
    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        block.register_forward_pre_hook(
            lambda module, args: calls.append((args, tuple(each.clone() for each in args)))
        )
    return calls


@pytest.mark.parametrize("kind", MAKERS)
def test_callers_may_change_what_blocks_return(engine: Engine, kind: str) -> None:
    make, shape = MAKERS[kind]
    unet, given = make(), inputs(**shape)
    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        block.register_forward_hook(_add_one)
    stock = run(unet, given)
    engine.attach()
    for _ in range(3):
        ours = run(unet, given)
        assert difference(ours, stock) <= LIMIT
        ours.add_(1.0)
    assert engine.generation.host == 0


def _add_one(module: nn.Module, args: Any, output: Tensor) -> None:
    output.add_(1.0)


def test_a_block_returns_new_memory_at_every_call(engine: Engine) -> None:
    unet, given = tiny_unet(), inputs()
    returned: list[Tensor] = []
    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        block.register_forward_hook(lambda module, args, output: returned.append(output))
    engine.attach()
    run(unet, given)
    run(unet, given)
    assert len({each.data_ptr() for each in returned}) == len(returned) == 18


def test_calls_of_blocks_with_arguments_we_do_not_know_are_the_hosts(engine: Engine) -> None:
    unet = tiny_sgm_unet()
    block, emb = unet.middle_block, torch.randn(2, 4 * CHANNELS)
    given, context = torch.randn(2, 2 * CHANNELS, 4, 4), inputs().context
    with torch.no_grad():
        stock = block(given, emb, context)
        engine.attach()
        assert torch.equal(block(given, emb, context, num_video_frames=2), stock)
    assert engine.generation.direct == 0


def test_random_state_is_left_alone(engine: Engine) -> None:
    unet, before = tiny_unet(), torch.random.get_rng_state()
    engine.attach()
    run(unet, inputs())
    assert torch.equal(torch.random.get_rng_state(), before)
