"""Slots give the tensors that the live modules hold now, in the order of the weights they are for."""

from typing import Any

import pytest
import torch
from torch import nn

from lib_accel.blocks import sample, transformer
from lib_accel.blocks.res import ResWeights
from lib_accel.layouts.slots import LiveWeights
from tests.layouts import live
from tests.layouts.live import BUILDERS, read

WEIGHTED = [kind for kind in BUILDERS if kind != "silu"]


@pytest.fixture(params=WEIGHTED)
def bound(request: pytest.FixtureRequest) -> tuple[nn.Module, LiveWeights]:
    module = BUILDERS[request.param]()
    return module, LiveWeights(read(request.param, module).slots)


def test_read_weights_are_the_live_parameters_themselves(bound: tuple[nn.Module, LiveWeights]) -> None:
    module, weights = bound
    live_ones = set(map(id, module.parameters()))
    assert all(each is None or id(each) in live_ones for each in weights.read())


def test_change_in_place_is_seen(bound: tuple[nn.Module, LiveWeights]) -> None:
    module, weights = bound
    for parameter in module.parameters():
        parameter.fill_(3)
    assert all(each is None or bool((each == 3).all()) for each in weights.read())


def test_replaced_parameters_are_seen(bound: tuple[nn.Module, LiveWeights]) -> None:
    module, weights = bound
    before = [each for each in weights.read() if each is not None]
    for layer in list(module.modules()):
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(parameter + 1))
    after = [each for each in weights.read() if each is not None]
    assert all(torch.equal(old + 1, new) for old, new in zip(before, after, strict=True))


def test_new_data_of_a_parameter_is_seen(bound: tuple[nn.Module, LiveWeights]) -> None:
    module, weights = bound
    for parameter in module.parameters():
        parameter.data = torch.full_like(parameter, 5)
    assert all(each is None or bool((each == 5).all()) for each in weights.read())


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float16), ("meta", torch.float32)])
def test_moved_weights_are_seen(
    device: str, dtype: torch.dtype, bound: tuple[nn.Module, LiveWeights]
) -> None:
    module, weights = bound
    module.to(device, dtype)
    found = {(each.device.type, each.dtype) for each in weights.read() if each is not None}
    assert found == {(device, dtype)}


def test_loaded_state_is_seen(bound: tuple[nn.Module, LiveWeights]) -> None:
    module, weights = bound
    state = {name: torch.full_like(value, 7) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    assert all(each is None or bool((each == 7).all()) for each in weights.read())


def test_bias_that_is_dropped_and_given_back_is_seen() -> None:
    layer = nn.Conv2d(4, 4, 3)
    weights, bias = LiveWeights(read("convolution", layer).slots), layer.bias
    layer.bias = None
    assert weights.read()[1] is None
    layer.bias = bias
    assert weights.read()[1] is bias


def test_missing_bias_is_read_as_none() -> None:
    layer = nn.Conv2d(4, 4, 3, bias=False)
    assert list(LiveWeights(read("convolution", layer).slots).read()) == [layer.weight, None]


def named(kind: str, module: Any, weights_type: Any) -> Any:
    return weights_type(*LiveWeights(read(kind, module).slots).read())


def test_weights_of_a_residual_block_have_their_names() -> None:
    block = live.res(64)
    weights = named("res", block, ResWeights)
    assert weights.norm_in is block.in_layers[0].weight
    assert weights.conv_in_bias is block.in_layers[2].bias
    assert weights.embed is block.emb_layers[1].weight
    assert weights.norm_out_bias is block.out_layers[0].bias
    assert weights.conv_out is block.out_layers[3].weight
    assert weights.skip_bias is block.skip_connection.bias


def test_residual_block_with_a_plain_skip_has_no_skip_weights() -> None:
    weights = named("res", live.res(), ResWeights)
    assert (weights.skip, weights.skip_bias) == (None, None)


def test_weights_of_an_attention_have_their_names() -> None:
    block = live.block()
    weights = named("cross-attention", block, transformer.AttentionWeights)
    assert (weights.norm, weights.norm_bias) == (block.norm2.weight, block.norm2.bias)
    attention = block.attn2
    expected = (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    found = (weights.query, weights.key, weights.value, weights.out)
    assert all(mine is layer.weight for mine, layer in zip(found, expected, strict=True))
    assert (weights.query_bias, weights.key_bias, weights.value_bias) == (None, None, None)


def test_weights_of_a_feed_forward_have_their_names() -> None:
    block = live.block()
    weights = named("feed-forward", block, transformer.FeedForwardWeights)
    assert weights.norm is block.norm3.weight
    assert weights.proj is block.ff.net[0].proj.weight
    assert weights.out_bias is block.ff.net[2].bias


def test_weights_of_an_embedding_have_their_names_nested_or_not() -> None:
    layers = live.embedding()
    for module in (layers, nn.Sequential(layers)):
        weights = named("embedding", module, sample.EmbeddingWeights)
        assert weights.hidden is layers[0].weight
        assert weights.out_bias is layers[2].bias
