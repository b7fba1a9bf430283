"""With the host's networks (LoRA and its kin): the host's own bits in the weights, nothing to pay a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.engine import Engine
from tests.fakes.controlnet import Control, FakeIPAdapter, FakeUNetHook
from tests.fakes.host import FakeHost, attached
from tests.fakes.lora import FakeLora, FakeNetwork, layers_of, name_layers, random_network
from tests.fakes.models import difference, inputs, run, tiny_controlnet, tiny_sgm_unet, tiny_unet
from tests.test_equality import LIMIT

ALL = 19  # blocks of the tiny UNet, with its own layers before and after them


@pytest.fixture
def lora() -> Iterator[FakeLora]:
    with FakeLora().installed() as lora:
        yield lora


@pytest.fixture
def host(lora: FakeLora) -> FakeHost:
    return FakeHost(lora)


@pytest.fixture
def twins() -> tuple[nn.Module, nn.Module]:
    """Two equal UNets: one to run with the engine, one without."""
    return _named(tiny_unet()), _named(tiny_unet())


def _named(unet: nn.Module) -> nn.Module:
    name_layers(unet)
    return unet


def _networks(unet: nn.Module, count: int, **kind: bool) -> list[FakeNetwork]:
    return [
        random_network(unet, f"n{index}", seed=100 + index, strength=0.3 + 0.1 * index, **kind)
        for index in range(count)
    ]


def _marks(unet: nn.Module) -> dict[str, Any]:
    return {name: vars(layer).get("network_current_names") for name, layer in layers_of(unet).items()}


def _assert_same_state(ours: nn.Module, stock: nn.Module) -> None:
    """Bits, marks and backups of every layer."""
    for name, layer in layers_of(stock).items():
        other = layers_of(ours)[name]
        for attribute in ("weight", "bias", "network_weights_backup", "network_bias_backup"):
            a, b = getattr(other, attribute, None), getattr(layer, attribute, None)
            assert (a is None) == (b is None), (name, attribute)
            assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), (name, attribute)
    assert _marks(ours) == _marks(stock)


def _run_twins(host: FakeHost, twins: tuple[nn.Module, nn.Module], make: Callable[[], Any] = inputs) -> float:
    """The difference between the two, after a call of each."""
    with host.switched_off():
        stock = run(twins[1], make())
    return difference(run(twins[0], make()), stock)


STEPS: list[list[tuple[int, float]]] = [
    [],
    [(0, 0.8)],
    [(0, 0.8), (1, -0.5), (2, 1.0)],
    [(0, 0.8), (1, 0.25), (2, 1.0)],
    [(2, 1.0), (0, 0.8)],
    [(1, 0.0)],
    [],
]


def _load(lora: FakeLora, networks: list[FakeNetwork], step: list[tuple[int, float]]) -> None:
    lora.loaded_networks = [networks[index] for index, _ in step]
    for index, strength in step:
        networks[index].unet_multiplier = networks[index].te_multiplier = strength


def test_merged_weights_are_the_hosts_bit_for_bit(
    engine: Engine, host: FakeHost, lora: FakeLora, twins: tuple[nn.Module, nn.Module]
) -> None:
    networks = _networks(twins[0], 3)
    for step in STEPS:
        _load(lora, networks, step)
        assert _run_twins(host, twins) <= LIMIT
        _assert_same_state(*twins)
    assert engine.generation.host == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merged_half_weights_are_the_hosts_bit_for_bit(
    engine: Engine, host: FakeHost, lora: FakeLora, twins: tuple[nn.Module, nn.Module], dtype: torch.dtype
) -> None:
    for unet in twins:
        for layer in unet.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.to(dtype)
        unet.dtype = dtype
    networks = _networks(twins[0], 3)
    for step in STEPS:
        _load(lora, networks, step)
        with torch.autocast("cpu", dtype=dtype):
            assert _run_twins(host, twins) <= 0.1
        _assert_same_state(*twins)


def test_networks_move_the_picture(
    engine: Engine, host: FakeHost, lora: FakeLora, twins: tuple[nn.Module, nn.Module]
) -> None:
    plain = run(twins[0], inputs())
    lora.loaded_networks = _networks(twins[0], 1)
    assert difference(run(twins[0], inputs()), plain) > 0.01
    lora.loaded_networks = []
    assert difference(run(twins[0], inputs()), plain) <= LIMIT


def test_all_layers_are_marked_also_those_outside_the_blocks(
    engine: Engine, host: FakeHost, lora: FakeLora
) -> None:
    unet = _named(tiny_sgm_unet())
    lora.loaded_networks = _networks(unet, 2)
    run(unet, inputs(vector=True))
    assert set(_marks(unet).values()) == {lora.wanted()}
    assert {"time_embed.0", "label_emb.0.2", "out.2"} <= _marks(unet).keys()
    assert engine.generation.networks == 2
    assert engine.generation.fuse_s > 0


class _Operations(TorchDispatchMode):
    """The names of the torch operations that run, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _operations(unet: nn.Module) -> list[str]:
    with _Operations() as recorded:
        run(unet, inputs())
    return recorded.names


def test_a_steady_step_costs_the_same_for_any_number_of_networks(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module]
) -> None:
    operations = {}
    for count in (0, 1, 16):
        lora.loaded_networks = _networks(twins[0], count, with_biases=False)
        run(twins[0], inputs())
        lora.calls = 0
        operations[count] = _operations(twins[0])
        assert lora.calls == 0
    assert operations[0] == operations[1] == operations[16]
    assert len(operations[0]) > 100


@pytest.mark.parametrize("count", [0, 1, 16])
def test_a_steady_step_looks_at_no_layer_of_a_control_model(
    engine: Engine, lora: FakeLora, count: int
) -> None:
    control, given, hint = tiny_controlnet(), inputs(), torch.randn(2, 3, 64, 64)
    lora.loaded_networks = _networks(_named(tiny_unet()), count)
    with torch.no_grad():
        control(given.x, hint, given.timesteps, given.context)
        lora.calls = 0
        control(given.x, hint, given.timesteps, given.context)
    assert lora.calls == 2  # its time_embed, which is outside its blocks
    assert engine.generation.host == 0


def test_a_steady_step_of_a_unet_under_control_looks_at_few_layers(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost
) -> None:
    lora.loaded_networks = _networks(twins[0], 3)
    control = Control(tiny_controlnet(), torch.randn(2, 3, 64, 64))
    for unet in twins:
        FakeUNetHook(unet, [control]).hook()
    assert _run_twins(host, twins) <= LIMIT
    _assert_same_state(*twins)
    lora.calls = 0
    run(twins[0], inputs())
    assert lora.calls == 2 + 2 + 2  # both time_embeds and out, which the hook and the control model call


def test_a_live_part_has_its_networks_too(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost
) -> None:
    for unet in twins:
        FakeIPAdapter().hook(unet.middle_block[1].transformer_blocks[0].attn2)
    for count in (0, 2, 1):
        lora.loaded_networks = _networks(twins[0], count)
        assert _run_twins(host, twins) <= LIMIT
        _assert_same_state(*twins)
    assert engine.generation.host == 3


def test_an_unknown_block_has_its_networks_too(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost
) -> None:
    for unet in twins:
        unet.middle_block.append(nn.Tanh())
    for count in (0, 2, 1):
        lora.loaded_networks = _networks(twins[0], count)
        assert _run_twins(host, twins) <= LIMIT
        _assert_same_state(*twins)


def test_weights_loaded_in_place_get_the_same_networks_again(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost
) -> None:
    lora.loaded_networks = _networks(twins[0], 2)
    _run_twins(host, twins)
    for unet in twins:
        unet.load_state_dict(_plain_state(tiny_unet(7), unet))
    assert set(_marks(twins[0]).values()) == {()}
    assert _run_twins(host, twins) <= LIMIT
    _assert_same_state(*twins)
    assert set(_marks(twins[0]).values()) == {lora.wanted()}


def _plain_state(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """The source's weights, with a zero bias wherever a network has left one in the target."""
    state = {name: torch.zeros_like(value) for name, value in target.state_dict().items()}
    return {**state, **source.state_dict()}


def test_one_layer_loaded_in_place_is_merged_again(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost
) -> None:
    lora.loaded_networks = _networks(twins[0], 2)
    _run_twins(host, twins)
    for unet in twins:
        layer = unet.output_blocks[1][0].in_layers[2]
        layer.load_state_dict({"weight": layer.weight * 0.5, "bias": layer.bias * 2})
    assert _run_twins(host, twins) <= LIMIT
    _assert_same_state(*twins)


FAILING = ["time_embed_0", "middle_block_0_in_layers_2", "output_blocks_3_0_out_layers_3", "out_2"]


@pytest.mark.parametrize("layer", FAILING)
def test_a_merge_that_raises_raises_as_in_stock(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost, layer: str
) -> None:
    lora.loaded_networks, lora.failing_layer = _networks(twins[0], 2), "diffusion_model_" + layer
    for _ in range(2):
        with pytest.raises(TypeError, match=f"{lora.failing_layer}: cannot merge"):
            run(twins[0], inputs())
    lora.failing_layer = None
    engine.begin_generation()
    assert _run_twins(host, twins) <= LIMIT
    _assert_same_state(*twins)
    assert (engine.generation.host, engine.generation.direct) == (0, ALL)


def test_switching_off_between_changes_leaves_the_hosts_books_right(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost
) -> None:
    networks = _networks(twins[0], 3)
    for number, step in enumerate(STEPS):
        _load(lora, networks, step)
        with host.switched_off() if number % 3 else contextlib.nullcontext():
            assert _run_twins(host, twins) <= LIMIT
        _assert_same_state(*twins)


def test_detaching_between_changes_leaves_the_hosts_books_right(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost
) -> None:
    networks = _networks(twins[0], 3)
    for number, step in enumerate(STEPS):
        engine.detach() if number % 3 else engine.attach()
        _load(lora, networks, step)
        assert _run_twins(host, twins) <= LIMIT
        _assert_same_state(*twins)


def test_a_host_without_networks_is_never_asked() -> None:
    unet, host = tiny_unet(), FakeHost()
    with attached(host):
        run(unet, inputs())
    assert set(_marks(unet).values()) == {None}


def test_the_same_network_twice_is_merged_twice(
    engine: Engine, lora: FakeLora, twins: tuple[nn.Module, nn.Module], host: FakeHost
) -> None:
    lora.loaded_networks = _networks(twins[0], 1) * 2
    assert _run_twins(host, twins) <= LIMIT
    _assert_same_state(*twins)


def test_networks_change_between_two_models(engine: Engine, lora: FakeLora) -> None:
    models = [_named(tiny_unet(0)), _named(tiny_unet(1))]
    lora.loaded_networks = _networks(models[0], 2)
    run(models[0], inputs())
    lora.loaded_networks = lora.loaded_networks[:1]
    run(models[1], inputs())
    assert set(_marks(models[1]).values()) == {lora.wanted()}
    run(models[0], inputs())
    assert set(_marks(models[0]).values()) == {lora.wanted()}
