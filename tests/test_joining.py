"""Output blocks that join h and its skip by themselves: the picture and what others see are as before."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.graphs.proof import HOST
from tests.fakes.controlnet import Control, FakeUNetHook
from tests.fakes.host import FakeHost, attached
from tests.fakes.joining import JOINS, Stage
from tests.fakes.models import difference, inputs, run, tiny_controlnet, tiny_sgm_unet, tiny_unet
from tests.fakes.tuning import Taking
from tests.test_equality import LIMIT, ResizingTorch

FAMILIES: dict[str, tuple[Callable[..., Any], bool]] = {
    "ldm": (tiny_unet, False),
    "sgm": (tiny_sgm_unet, True),
}


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage.opened() as stage:
        yield stage


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[Stage]:
    make, vector = FAMILIES[request.param]
    with Stage.opened(make(), vector=vector) as stage:
        yield stage


class _Operations(TorchDispatchMode):
    """The torch operations that run, but for memory that is only asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.empty.memory_format:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(draw: Callable[[], Any]) -> list[str]:
    with _Operations() as seen:
        draw()
    return seen.names


# The picture


def test_each_output_block_joins_from_the_first_call_on(family: Stage) -> None:
    assert [family.joins() for _ in range(3)] == [JOINS] * 3


def test_a_picture_has_the_bits_that_it_has_in_plain_torch(family: Stage) -> None:
    plain = [family.draw(Taking()), family.draw(code="direct")]
    assert all(torch.equal(family.draw(), each) for each in plain)


def test_plain_torch_takes_the_operations_of_direct_code(family: Stage) -> None:
    family.draw()
    direct = operations(lambda: family.draw(code="direct"))
    assert operations(lambda: family.draw(Taking())) == direct
    assert direct.count("aten.cat.default") == JOINS + 1  # and the waves of the timestep


def test_blocks_that_join_run_nothing_besides(family: Stage) -> None:
    family.draw()  # after which nobody wants to know what residual blocks call
    assert operations(family.draw) == operations(lambda: family.draw(code="direct"))


def test_blocks_and_calls_are_counted_as_before(family: Stage) -> None:
    counted = []
    for taking in (Taking(), None):
        family.draw(taking)
        done = family.engine.generation
        counted.append((done.direct, done.compiled, done.host, done.model_calls, done.networks))
    assert counted[0] == counted[1]


def test_residual_blocks_are_noted_as_before() -> None:
    noted = []
    for taking in (Taking(), None):
        with Stage.opened() as stage:
            stage.draw(taking)
        noted.append([(name, args[0].shape, args[0].stride()) for name, args in stage.tuner.noted])
    assert noted[0] == noted[1] != []


@pytest.mark.parametrize("code", ["direct", "measured", "compiled"])
def test_other_codes_join_before(stage: Stage, code: str) -> None:
    assert stage.joins(code=code) == 0


def test_under_autocast_the_bits_are_those_of_plain_torch(family: Stage) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        plain = family.draw(Taking())
        assert torch.equal(family.draw(), plain)
    assert family.joining.count == JOINS


# What is around blocks


def hears(module: nn.Module, args: tuple[Tensor, ...], heard: list[Tensor]) -> None:
    heard.append(args[0])


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_an_output_block_sees_the_joined_image(stage: Stage, kind: str) -> None:
    heard: list[Tensor] = []
    block = stage.unet.output_blocks[1]
    hook = getattr(block, kind)(lambda module, args, *_: hears(module, args, heard))
    assert stage.joins() == JOINS - 1
    assert [each.shape[1] for each in heard] == [block[0].in_layers[0].num_channels] * 2
    hook.remove()
    assert stage.joins() == JOINS


def test_a_block_with_a_forward_of_its_own_is_called(stage: Stage) -> None:
    block, heard = stage.unet.output_blocks[0], []

    def forward(self: Any, x: Tensor, *args: Any) -> Tensor:
        heard.append(x)
        return type(self).forward(self, 2 * x, *args)

    block.forward = MethodType(forward, block)
    assert stage.joins() == JOINS - 1
    assert len(heard) == 2


@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_what_others_put_before_the_containers_class_is_called(
    stage: Stage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    container, heard = ldm_openaimodel.TimestepEmbedSequential, []
    inner = getattr(container, name)

    def outer(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        heard.append(x)
        return inner(self, x, *args, **kwargs)

    monkeypatch.setattr(container, name, outer, raising=False)
    assert stage.joins() == 0
    assert len(heard) == 2 * len([*stage.unet.input_blocks, 1, *stage.unet.output_blocks])


def test_blocks_that_another_engine_takes_are_called() -> None:
    stage, other = Stage(), FakeHost()
    other.owns = lambda module: module is not stage.unet  # type: ignore[method-assign]
    with attached(other) as engine:
        stage.engine.attach()
        stage.draw()
        stage.engine.detach()
        assert (stage.joining.count, engine.generation.host, stage.engine.generation.total) == (0, 0, 1)
        assert engine.generation.direct == 18


def test_a_block_whose_residual_block_is_the_hosts_is_called(stage: Stage) -> None:
    assert stage.joins() == JOINS
    hook = stage.unet.output_blocks[2][0].in_layers[2].register_forward_hook(lambda *_: None)
    assert stage.joins() == JOINS - 1
    assert stage.engine.generation.host == 1
    hook.remove()
    assert stage.joins() == JOINS


def test_what_a_block_ran_before_it_joined_is_not_counted(stage: Stage) -> None:
    stage.draw()
    bound: Any = stage.engine._bindings.known_unit(stage.unet.output_blocks[0])
    bound._steps[0].chosen = HOST
    assert stage.joins() == JOINS
    assert stage.engine.generation.host == 0


def test_a_block_that_was_changed_joins_as_it_is_now(stage: Stage) -> None:
    before = stage.draw()
    stage.unet.output_blocks[3][0].in_layers[2].padding_mode = "circular"
    assert stage.joins() == JOINS
    assert difference(stage.draw(), before) > 1e-3


def test_under_control_nobody_joins(stage: Stage) -> None:
    FakeUNetHook(stage.unet, [Control(tiny_controlnet(), torch.randn(2, 3, 64, 64))]).hook()
    assert stage.joins() == 0


# Who joins instead


class CountingTorch(ResizingTorch):
    """The webui's, which counts."""

    count = 0

    def cat(self, *args: Any, **kwargs: Any) -> Tensor:
        type(self).count += 1
        return super().cat(*args, **kwargs)


@pytest.fixture
def webui_cat(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> type[CountingTorch]:
    """In place, and trusted by the host."""
    kind = type("Counting", (CountingTorch,), {})
    monkeypatch.setattr(ldm_openaimodel, "th", kind())
    stage.host.trusted.append(CountingTorch.cat)
    return kind


def test_the_webuis_cat_is_left_out_where_sizes_are_equal(
    stage: Stage, webui_cat: type[CountingTorch]
) -> None:
    assert stage.joins() == JOINS
    assert webui_cat.count == JOINS  # of stock


@pytest.mark.usefixtures("webui_cat")
@pytest.mark.parametrize("size", [(9, 7), (8, 7)])
def test_images_of_odd_sizes_are_fitted_by_the_host(stage: Stage, size: tuple[int, int]) -> None:
    given = inputs(size=size)
    with stage.host.switched_off():
        stock = run(stage.unet, given)
    assert difference(run(stage.unet, given), stock) <= LIMIT
    assert stage.joining.count == JOINS - 1
    assert stage.engine.generation.host == 0


def test_another_cat_is_always_called(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    th = ResizingTorch()
    called: list[int] = []

    def cat(tensors: Any, *args: Any, inner: Any, **kwargs: Any) -> Tensor:
        called.append(1)
        return inner((1.3 * tensors[0], tensors[1]), *args, **kwargs)

    th.cat = functools.partial(cat, inner=th.cat)  # type: ignore[method-assign]
    monkeypatch.setattr(ldm_openaimodel, "th", th)
    assert stage.joins() == 0
    assert len(called) == 2 * JOINS


def test_a_replaced_cat_of_torchs_is_called(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = torch.cat
    monkeypatch.setattr(torch, "cat", lambda *args, **kwargs: inner(*args, **kwargs))
    assert stage.joins() == 0
