"""Each block of a VAE equals the host's own module, and attention between positions equals its definition.

Tolerances are relative, by the norm of the difference. In float32 only attention sums in another order:
measured 2e-7. In bfloat16 both sides round, so ours must be as near to float32's result as the host's is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import model as ldm_model
from torch import Tensor, nn

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.image import ImageAttentionSpec, ImageAttentionWeights, image_attention, shrink
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.rules import AS_IT_COMES, rules_for
from lib_accel.blocks.sample import ConvWeights
from lib_accel.calls import ModelCall
from lib_accel.layouts.slots import LiveWeights
from lib_accel.steps import choose
from tests.blocks.test_against_host import PLAIN, Mode, autocast
from tests.fakes.models import difference, randomized
from tests.fakes.vae import chain, picture, sgm_model, tiny_decoder, tiny_encoder

F32, BF16 = torch.float32, torch.bfloat16
LIMIT = 1e-6

HOMES = {"ldm": ldm_model, "sgm": sgm_model()}
BLOCKS = {"decoder": (tiny_decoder, 4, 10), "encoder": (tiny_encoder, 3, 8)}  # with channels and length
CASES = [
    pytest.param(HOMES[home], *BLOCKS[name][:2], index, id=f"{home} {name} {index}")
    for home in HOMES
    for name in BLOCKS
    for index in range(BLOCKS[name][2])
]
MODES = {
    "bfloat16": Mode(BF16, BF16, None),
    "autocast": Mode(F32, F32, BF16),
    "autocast of bfloat16 inputs": Mode(F32, BF16, BF16),
}


class Pair:
    """One block of a live chain with what it is given there: the host's result and ours."""

    def __init__(self, model: Any, x: Tensor, index: int, mode: Mode = PLAIN) -> None:
        model.to(mode.weights)
        candidates, x = chain(model), x.to(mode.inputs)
        (step,), slots = choose([candidates[index]])
        with autocast("cpu", mode.autocast):
            for candidate in candidates[:index]:
                x = candidate.call_live(x, None, None)
            self.given, self.host = x.clone(), candidates[index].call_live(x, None, None)
        call = ModelCall(rules_for("cpu", mode.autocast), None, (), "cpu", mode.autocast)
        self.ours = step.run(x, None, None, call, LiveWeights(slots).read())
        self.given_after, self.reasons = x, step.reasons(None)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)], ids=str)
@pytest.mark.parametrize(("home", "make", "channels", "index"), CASES)
def test_block_equals_the_hosts_in_float32(
    home: ModuleType, make: Callable[..., Any], channels: int, index: int, size: tuple[int, int]
) -> None:
    pair = Pair(make(home), picture(2, channels, (size[0] + 1, size[1] + 1)), index)
    assert pair.reasons == []
    assert difference(pair.ours, pair.host) <= LIMIT


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize(("home", "make", "channels", "index"), CASES)
def test_block_in_bfloat16_has_the_hosts_dtype_and_no_more_than_its_noise(
    home: ModuleType, make: Callable[..., Any], channels: int, index: int, mode: Mode
) -> None:
    x = picture(2, channels).to(mode.inputs)
    pair = Pair(make(home), x, index, mode)
    # The same weights and what the block was given, exactly.
    model = make(home).to(mode.weights).float()
    exact = chain(model)[index].call_live(pair.given.float(), None, None)
    assert pair.ours.dtype is pair.host.dtype
    assert difference(pair.ours, exact) <= 1.1 * difference(pair.host, exact)


@pytest.mark.parametrize(("home", "make", "channels", "index"), CASES)
def test_block_leaves_its_input_as_it_was_and_gives_a_contiguous_result(
    home: ModuleType, make: Callable[..., Any], channels: int, index: int
) -> None:
    pair = Pair(make(home), picture(2, channels), index)
    assert torch.equal(pair.given, pair.given_after)
    assert pair.ours.is_contiguous()
    assert pair.ours.data_ptr() != pair.given_after.data_ptr()


@pytest.mark.parametrize("field", [name for name in ImageAttentionWeights._fields if name != "key_bias"])
def test_one_weight_of_attention_wrong_by_a_hundredth_is_noticed(field: str) -> None:
    # A bias of the keys adds the same to all scores of a query, which softmax takes off again.
    weights, spec, x = _attention()
    wrong = weights._replace(**{field: getattr(weights, field) * 1.01})
    right = image_attention(x, weights, spec, AS_IT_COMES)
    assert difference(image_attention(x, wrong, spec, AS_IT_COMES), right) > 10 * LIMIT


def _attention(heads: int = 1) -> tuple[ImageAttentionWeights, ImageAttentionSpec, Tensor]:
    block = randomized(ldm_model.AttnBlock(32), 0)
    layers = (block.norm, block.q, block.k, block.v, block.proj_out)
    weights = ImageAttentionWeights(*(each for layer in layers for each in (layer.weight, layer.bias)))
    return weights, ImageAttentionSpec(GroupNormSpec(32, 1e-6, False), heads), picture(2, 32, (5, 3))


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_attention_of_several_heads_equals_its_definition(heads: int) -> None:
    weights, spec, x = _attention(heads)
    w = ImageAttentionWeights(*(each.flatten(1) if each.dim() > 1 else each for each in weights))
    tokens = nn.functional.group_norm(x, 32, w.norm, w.norm_bias, 1e-6).flatten(2).transpose(1, 2)
    query, key, value = (
        (tokens @ weight.T + bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for weight, bias in ((w.query, w.query_bias), (w.key, w.key_bias), (w.value, w.value_bias))
    )
    scores = (query @ key.transpose(-1, -2) / (32 / heads) ** 0.5).softmax(dim=-1)
    mixed = (scores @ value).transpose(1, 2).flatten(2) @ w.out.T + w.out_bias
    expected = x + mixed.transpose(1, 2).unflatten(2, (5, 3))
    assert difference(image_attention(x, w, spec, AS_IT_COMES), expected) <= LIMIT


def test_projection_read_as_a_convolution_or_as_a_linear_layer_is_the_same() -> None:
    weights, spec, x = _attention()
    flat = ImageAttentionWeights(*(each.flatten(1) if each.dim() > 1 else each for each in weights))
    assert torch.equal(
        image_attention(x, weights, spec, AS_IT_COMES), image_attention(x, flat, spec, AS_IT_COMES)
    )


def test_attention_without_biases_is_that_with_zeros() -> None:
    weights, spec, x = _attention()
    names = [f"{name}_bias" for name in ("query", "key", "value", "out")]
    none = weights._replace(**dict.fromkeys(names))
    zeros = weights._replace(**{name: torch.zeros(32) for name in names})
    assert (
        difference(image_attention(x, none, spec, AS_IT_COMES), image_attention(x, zeros, spec, AS_IT_COMES))
        <= LIMIT
    )


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (7, 5), (8, 9)], ids=str)
def test_shrinking_pads_below_and_to_the_right_only(size: tuple[int, int]) -> None:
    weight, x = torch.zeros(1, 1, 3, 3), picture(1, 1, size)
    weight[..., 2, 2] = 1  # takes what is two below and two to the right
    shrunk = shrink(x, ConvWeights(weight, None), ConvSpec((2, 2)), AS_IT_COMES)
    assert torch.equal(shrunk, nn.functional.pad(x, (0, 1, 0, 1))[..., 2::2, 2::2])
