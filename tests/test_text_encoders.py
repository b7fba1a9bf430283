"""Text encoders: the stock prompt embedding with any mask, any network, and whatever hangs on them."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.engine import Engine
from tests.fakes.host import FakeHost, attached
from tests.fakes.models import difference, randomized
from tests.fakes.text_encoders import (
    CLIP_HOME,
    LAYERS,
    TOKENS,
    WIDTH,
    config,
    old_clip,
    open_clip_transformer,
    prompts,
    states,
    tiny_clip,
    tiny_open_clip,
)
from tests.fakes.text_lora import FakeTextLora, name_layers, network

LIMIT = 1e-5
NOISE = 2e-2  # in bfloat16: measured 6e-3 after three layers
BF16 = torch.bfloat16
MODELS = {"clip": tiny_clip, "open_clip": tiny_open_clip}

open_clip_transformer()  # an engine finds what is imported


def run(model: nn.Module, ids: Tensor) -> Tensor:
    """The last layer's states, without gradients."""
    with torch.no_grad():
        result = model(ids)
    return result if isinstance(result, Tensor) else result.last_hidden_state


def assert_stock(host: FakeHost, model: nn.Module, limit: float = LIMIT) -> None:
    with host.switched_off():
        expected = run(model, prompts())
    ours = run(model, prompts())
    assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
    assert difference(ours, expected) <= limit


# The states


PADDING = {
    "none": None,
    "right": torch.tensor([[1] * TOKENS, [1] * 7 + [0] * (TOKENS - 7)]),
    "left": torch.tensor([[1] * TOKENS, [0] * 4 + [1] * (TOKENS - 4)]),
}


@pytest.mark.parametrize("autocast", [None, BF16], ids=str)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_every_state_of_clip_is_the_hosts(
    engine: Engine, host: FakeHost, activation: str, attention: str, padding: str, autocast: Any
) -> None:
    model, mask = tiny_clip(activation=activation, attention=attention), PADDING[padding]
    with nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast):
        with host.switched_off():
            expected = states(model, prompts(), attention_mask=mask)
        ours = states(model, prompts(), attention_mask=mask)
    assert [each.dtype for each in ours] == [each.dtype for each in expected]
    worst = max(map(difference, ours, expected))
    assert worst <= (LIMIT if autocast is None else NOISE)
    assert (engine.generation.host, engine.generation.direct) == (0, LAYERS)


def test_states_may_be_asked_for_at_one_call_and_not_at_the_next(engine: Engine, host: FakeHost) -> None:
    # The package then hangs hooks on every layer and its attention, for good.
    model = tiny_clip()
    before = run(model, prompts())
    asked = states(model, prompts())
    assert len(asked) == LAYERS + 1
    assert torch.equal(run(model, prompts()), before)
    assert_stock(host, model)
    assert engine.generation.host == 0


@pytest.mark.parametrize("padding", [None, PADDING["right"], PADDING["left"]], ids=PADDING)
@pytest.mark.parametrize("asked", [False, True])
def test_layers_of_transformers_4_are_the_hosts(
    monkeypatch: pytest.MonkeyPatch, host: FakeHost, padding: Tensor | None, asked: bool
) -> None:
    home = old_clip()
    monkeypatch.setitem(sys.modules, CLIP_HOME, home)
    model, x = randomized(home.CLIPEncoder(config()), 0), torch.linspace(-1, 1, 2 * TOKENS * WIDTH)
    x = x.sin().reshape(2, TOKENS, WIDTH)
    with torch.no_grad(), attached(host) as engine:
        with host.switched_off():
            expected = model(x, padding, output_attentions=asked)
        ours = model(x, padding, output_attentions=asked)
    assert max(map(difference, ours[0], expected[0])) <= LIMIT
    assert len(ours[1]) == len(expected[1]) == asked * LAYERS
    assert (engine.generation.host, engine.generation.direct) == (asked * LAYERS, (not asked) * LAYERS)


@pytest.mark.parametrize("place", ["call", "config"])
def test_asking_for_the_weights_of_attention_gets_them(engine: Engine, host: FakeHost, place: str) -> None:
    model, asked = tiny_clip(attention="eager"), {"output_attentions": True}
    if place == "config":
        model.config.output_attentions = asked.pop("output_attentions")
    with torch.no_grad():
        ours = model(prompts(), **asked).attentions
        with host.switched_off():
            expected = model(prompts(), **asked).attentions
    assert len(ours) == LAYERS
    assert all(map(torch.equal, ours, expected))
    assert dict(engine.generation.reasons) == {"the attention's weights are asked for": LAYERS}


@pytest.mark.parametrize("skipped", [0, 1, 2])
@pytest.mark.parametrize("autocast", [None, BF16], ids=str)
def test_states_of_open_clip_are_the_hosts(
    engine: Engine, host: FakeHost, autocast: Any, skipped: int
) -> None:
    model = tiny_open_clip()
    with torch.no_grad(), nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast):
        with host.switched_off():
            expected = model(prompts(), skipped)
        ours = model(prompts(), skipped)
    assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
    assert difference(ours, expected) <= (LIMIT if autocast is None else NOISE)
    assert (engine.generation.host, engine.generation.direct) == (0, LAYERS - skipped)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_weights_in_half_give_the_hosts_states(
    engine: Engine, host: FakeHost, make: Callable[[], Any]
) -> None:
    assert_stock(host, make().to(BF16), NOISE)
    assert engine.generation.host == 0


# What hangs on them


class _WithEmbeddings(nn.Module):
    """As the webui's textual inversion: puts vectors of its own among those of the tokens."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, ids: Tensor) -> Tensor:
        found = self.wrapped(ids)
        return torch.cat([found[:, :2], torch.ones_like(found[:, 2:4]), found[:, 4:]], dim=1)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_embeddings_of_ones_own_cost_nothing(engine: Engine, host: FakeHost, make: Callable[[], Any]) -> None:
    model = make()
    before = run(model, prompts())
    (owner,) = (each for each in model.modules() if "token_embedding" in each._modules)
    owner.token_embedding = _WithEmbeddings(owner.token_embedding)
    engine.begin_generation()
    assert_stock(host, model)
    assert difference(run(model, prompts()), before) > 0.1
    assert (engine.generation.host, engine.generation.direct) == (0, 2 * LAYERS)


def _layers(model: Any) -> list[Any]:
    names = ("CLIPEncoderLayer", "ResidualAttentionBlock")
    return [each for each in model.modules() if type(each).__name__ in names]


def _attention(layer: Any) -> Any:
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attn


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_hook_on_a_layer_costs_nothing(engine: Engine, host: FakeHost, make: Callable[[], Any]) -> None:
    model, seen = make(), []
    _layers(model)[1].register_forward_hook(lambda layer, args, output: seen.append(output))
    assert_stock(host, model)
    assert len(seen) == 2
    assert (engine.generation.host, engine.generation.direct) == (0, LAYERS)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_hook_on_attention_sends_its_layer_alone_to_the_host(
    engine: Engine, host: FakeHost, make: Callable[[], Any]
) -> None:
    model = make()
    run(model, prompts())
    attention = _attention(_layers(model)[1])
    attention.register_forward_hook(lambda layer, args, output: (output[0] * 2, *output[1:]))
    engine.begin_generation()
    assert_stock(host, model)
    assert (engine.generation.host, engine.generation.direct) == (1, LAYERS - 1)
    assert dict(engine.generation.reasons) == {f"{type(attention).__name__} has a forward hook": 1}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_replaced_forward_of_a_projection_sends_its_layer_to_the_host(
    engine: Engine, host: FakeHost, make: Callable[[], Any]
) -> None:
    model = make()
    run(model, prompts())
    layer = _layers(model)[2]
    target = next(each for each in reversed(list(layer.mlp.modules())) if isinstance(each, nn.Linear))
    whole = target.forward
    target.forward = lambda x: whole(x) * 2
    engine.begin_generation()
    assert_stock(host, model)
    assert (engine.generation.host, engine.generation.direct) == (1, LAYERS - 1)


@pytest.mark.parametrize("on_class", [False, True])
def test_a_late_attention_of_an_open_clip_layer_is_not_ours(
    engine: Engine, host: FakeHost, monkeypatch: pytest.MonkeyPatch, on_class: bool
) -> None:
    model = tiny_open_clip()
    before = run(model, prompts())
    layer, kind = _layers(model)[1], type(_layers(model)[1])
    whole = kind.attention
    if on_class:
        monkeypatch.setattr(
            kind, "attention", lambda self, *args, **options: whole(self, *args, **options) * 2
        )
    else:
        layer.attention = lambda *args, **options: whole(layer, *args, **options) * 2
    engine.begin_generation()
    assert_stock(host, model)
    assert difference(run(model, prompts()), before) > 1e-3
    touched = LAYERS if on_class else 1
    assert engine.generation.host == 2 * touched


def test_a_late_implementation_of_attention_is_seen(engine: Engine, host: FakeHost) -> None:
    model = tiny_clip()
    run(model, prompts())
    model.config._attn_implementation = "somebody's"
    engine.begin_generation()
    with pytest.raises(KeyError):  # stock knows it no more than we do
        run(model, prompts())
    assert dict(engine.generation.reasons) == {'attention is computed by "somebody\'s"': 1}


def test_a_class_replaced_before_us_costs_only_its_own_blocks(
    monkeypatch: pytest.MonkeyPatch, host: FakeHost
) -> None:
    home: Any = importlib.import_module(CLIP_HOME)
    original = home.CLIPEncoderLayer.forward
    monkeypatch.setattr(
        home.CLIPEncoderLayer, "forward", lambda self, *args, **options: original(self, *args, **options) * 2
    )
    host.live = [(name, make()) for name, make in MODELS.items()]
    with attached(host) as engine:
        for _, model in host.live:
            assert_stock(host, model)
        found = {each.name: (each.blocks.host, each.blocks.direct) for each in engine.report().models}
    assert found == {"clip": (LAYERS, 0), "open_clip": (0, LAYERS)}
    reason = f"{CLIP_HOME}.CLIPEncoderLayer.forward had been replaced before us"
    assert dict(engine.generation.reasons) == {reason: LAYERS}


def test_a_wrap_of_the_encoder_before_us_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, host: FakeHost
) -> None:
    home: Any = importlib.import_module(CLIP_HOME)
    original = home.CLIPEncoder.forward
    monkeypatch.setattr(home.CLIPEncoder, "forward", lambda self, *a, **given: original(self, *a, **given))
    with attached(host) as engine:
        assert_stock(host, tiny_clip())
    assert (engine.generation.host, engine.generation.direct) == (0, LAYERS)


def test_a_call_of_an_encoder_does_not_count_as_a_denoisers(engine: Engine) -> None:
    run(tiny_clip(), prompts())
    assert engine.generation.model_calls == 0


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_training_stays_with_the_host(engine: Engine, make: Callable[[], Any]) -> None:
    model = make().requires_grad_(True)
    result = model(prompts())
    (result if isinstance(result, Tensor) else result.last_hidden_state).sum().backward()
    assert all(each.grad is not None for each in _layers(model)[0].parameters())
    assert dict(engine.generation.reasons) == {"gradients are on, as in training": LAYERS}


# Networks


@pytest.fixture
def lora() -> Iterator[FakeTextLora]:
    with FakeTextLora().installed() as lora:
        yield lora


@pytest.fixture
def with_lora(lora: FakeTextLora) -> FakeHost:
    host = FakeHost(lora)
    host.trusted = [nn.MultiheadAttention.forward]
    return host


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def twins(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Two equal encoders: one to run with the engine, one without."""
    return name_layers(request.param()), name_layers(request.param())


def _marks(model: nn.Module) -> dict[str, Any]:
    """What the extension notes on modules of torch's own classes, whose forwards it replaces."""
    modules = [
        (name, each) for name, each in model.named_modules() if type(each).__module__[:8] == "torch.nn"
    ]
    return {name: vars(each).get("network_current_names") for name, each in modules}


def _assert_equal(host: FakeHost, twins: tuple[Any, Any]) -> Tensor:
    """The same states, the same bits in every weight and the same marks, after a call of each."""
    with host.switched_off():
        expected = run(twins[1], prompts())
    ours = run(twins[0], prompts())
    assert difference(ours, expected) <= LIMIT
    assert _marks(twins[0]) == _marks(twins[1])
    state = twins[1].state_dict()
    assert [key for key, value in twins[0].state_dict().items() if not torch.equal(value, state[key])] == []
    return ours


STEPS = [[], [(0, 0.8)], [(0, 0.8), (1, -0.5)], [(1, 0.3)], []]


def test_merged_weights_are_the_hosts_bit_for_bit(
    with_lora: FakeHost, lora: FakeTextLora, twins: tuple[Any, Any]
) -> None:
    networks = [network(twins[0], f"n{seed}", seed=seed) for seed in range(2)]
    plain = run(twins[1], prompts())
    with attached(with_lora) as engine:
        for step in STEPS:
            lora.loaded_networks = [networks[index] for index, _ in step]
            for index, strength in step:
                networks[index].unet_multiplier = networks[index].te_multiplier = strength
            result = _assert_equal(with_lora, twins)
            assert (difference(result, plain) > 0.01) == bool(step)
    assert engine.generation.host == 0


def test_the_first_call_has_its_networks(
    with_lora: FakeHost, lora: FakeTextLora, twins: tuple[Any, Any]
) -> None:
    lora.loaded_networks = [network(twins[0], "n0", seed=0)]
    with attached(with_lora) as engine:
        _assert_equal(with_lora, twins)
    assert engine.generation.networks == 1
    assert engine.generation.fuse_s > 0


def test_back_to_no_network_gives_the_same_bits(
    with_lora: FakeHost, lora: FakeTextLora, twins: tuple[Any, Any]
) -> None:
    before = {key: value.clone() for key, value in twins[0].state_dict().items()}
    with attached(with_lora):
        for networks in ([network(twins[0], "n0", seed=0)], []):
            lora.loaded_networks = networks
            run(twins[0], prompts())
    assert all(torch.equal(value, before[key]) for key, value in twins[0].state_dict().items())


def test_a_live_layer_has_its_networks_too(
    with_lora: FakeHost, lora: FakeTextLora, twins: tuple[Any, Any]
) -> None:
    for model in twins:
        _attention(_layers(model)[1]).register_forward_hook(lambda *args: None)
    with attached(with_lora) as engine:
        for count in (2, 0, 1):
            lora.loaded_networks = [network(twins[0], f"n{seed}", seed=seed) for seed in range(count)]
            _assert_equal(with_lora, twins)
    assert engine.generation.host == 3


def test_the_output_of_an_attention_is_merged_by_the_attention_alone(
    with_lora: FakeHost, lora: FakeTextLora
) -> None:
    model = name_layers(tiny_open_clip())
    lora.loaded_networks = [network(model, "n0", seed=0)]
    with attached(with_lora):
        run(model, prompts())
    outputs = [layer.attn.out_proj for layer in _layers(model)]
    assert all(each.network_layer_name.endswith("_out_proj") for each in outputs)
    assert {vars(each).get("network_current_names") for each in outputs} == {None}
    assert lora.merged_outputs == LAYERS


def test_a_steady_call_looks_at_no_layer(
    with_lora: FakeHost, lora: FakeTextLora, twins: tuple[Any, Any]
) -> None:
    lora.loaded_networks = [network(twins[0], "n0", seed=0)]
    with attached(with_lora):
        run(twins[0], prompts())
        lora.calls, lora.looked_at = 0, []
        run(twins[0], prompts())
    assert all("layers" not in name and "resblocks" not in name for name in lora.looked_at)


# Memory


def _with_live_steps(model: Any) -> None:
    for layer in _layers(model):
        _attention(layer).register_forward_hook(lambda *args: None)


@pytest.mark.parametrize("prepare", [lambda model: None, _with_live_steps], ids=["direct", "live"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_dropped_model_is_freed(
    engine: Engine, make: Callable[[], Any], prepare: Callable[[Any], None]
) -> None:
    model = make()
    prepare(model)
    run(model, prompts())
    layer = _layers(model)[0]
    known = [weakref.ref(each) for each in (model, layer, _attention(layer))]
    del model, layer
    gc.collect()
    assert [each() for each in known] == [None] * 3
