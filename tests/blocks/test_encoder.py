"""A text encoder's layer equals the live one of each package, under every kind of mask.

Tolerances are relative, by the norm of the difference: 1e-5 in float32, where attention sums in another order
(measured 3e-7). In bfloat16 ours must be as near to float32's result as the live layer is.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.blocks.encoder import EncoderWeights, Mask, encoder_layer, quick_gelu
from lib_accel.blocks.rules import AS_IT_COMES, Rules, rules_for
from lib_accel.layouts import clip, open_clip
from lib_accel.layouts.slots import LiveWeights
from tests.blocks.test_against_host import Mode, autocast
from tests.fakes.models import difference, randomized
from tests.fakes.text_encoders import CLIP_HOME, HEADS, TOKENS, WIDTH, config, open_clip_transformer
from tests.fakes.vae import nobody

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
LIMIT = 1e-5

LOWEST = torch.full((TOKENS, TOKENS), torch.finfo(F32).min).triu(1)[None, None]
PADDED = LOWEST.repeat(2, 1, 1, 1)
PADDED[1, ..., 9:] = torch.finfo(F32).min  # the second prompt is shorter
FROM_THE_LEFT = LOWEST.repeat(2, 1, 1, 1)
FROM_THE_LEFT[1, ..., :4] = torch.finfo(F32).min  # its first rows have nothing left to attend to

# What masks transformers hands to a layer, by the name of the implementation that asks for them.
MASKS = {
    "eager, none": Mask(),
    "eager, causal": Mask(LOWEST),
    "eager, padded": Mask(PADDED),
    "eager, padded from the left": Mask(FROM_THE_LEFT),
    "sdpa, none": Mask(),
    "sdpa, causal": Mask(None, is_causal=True),
    "sdpa, causal as a tensor": Mask(LOWEST == 0),
    "sdpa, padded": Mask(PADDED == 0),
}
MODES = {
    "bfloat16": Mode(BF16, BF16, None),
    "autocast": Mode(F32, F32, BF16),
    "autocast of bfloat16 inputs": Mode(F32, BF16, BF16),
}


def clip_layer(activation: str = "quick_gelu", attention: str = "sdpa") -> Any:
    made = importlib.import_module(CLIP_HOME).CLIPEncoderLayer(config(activation, attention))
    made.layer_norm2.eps = 1e-2  # unlike the other
    return randomized(made, 0)


def open_clip_layer(**options: Any) -> Any:
    made = open_clip_transformer().ResidualAttentionBlock(WIDTH, HEADS, **options)
    made.ln_2.eps = 1e-2
    return randomized(made, 0)


def ours(layer: Any, x: Tensor, mask: Mask, rules: Rules = AS_IT_COMES) -> Tensor:
    """Our function with what the layout reads in the layer."""
    home = open_clip if hasattr(layer, "ln_1") else clip
    (candidate,) = home.ENTRIES[0].candidates(layer, nobody)
    found = candidate.read()
    weights = EncoderWeights(*LiveWeights(found.slots).read())
    return encoder_layer(x, mask, weights, found.spec, rules)


def live(layer: Any, x: Tensor, mask: Mask) -> Tensor:
    """The layer as its owner calls it."""
    if hasattr(layer, "ln_1"):
        result: Tensor = layer(x, attn_mask=mask.bias)
    else:
        result = layer(x, mask.bias, is_causal=mask.is_causal)
    return result


def tokens(dtype: torch.dtype = F32, *, first: bool = False) -> Tensor:
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.transpose(0, 1) if first else x


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_layer_equals_transformers(activation: str, name: str) -> None:
    layer = clip_layer(activation, name.split(",")[0])
    x, mask = tokens(), MASKS[name]
    assert difference(ours(layer, x, mask), live(layer, x, mask)) <= LIMIT


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("name", MASKS)
def test_clip_layer_in_bfloat16_has_the_dtype_and_no_more_than_the_noise(name: str, mode: Mode) -> None:
    layer, mask = clip_layer(attention=name.split(",")[0]).to(mode.weights), MASKS[name]
    bias = mask.bias
    if mode.autocast is None and bias is not None and bias.dtype is F32:  # made in the dtype of the states
        bias = bias.to(BF16).clamp(min=torch.finfo(BF16).min)
    _assert_no_more_than_the_noise(layer, tokens(mode.inputs), mask._replace(bias=bias), mode)


def _assert_no_more_than_the_noise(layer: Any, x: Tensor, mask: Mask, mode: Mode) -> None:
    with autocast("cpu", mode.autocast):
        theirs = live(layer, x, mask)
    mine = ours(layer, x, mask, rules_for("cpu", mode.autocast))
    wide = None if mask.bias is None or mask.bias.dtype is torch.bool else mask.bias.float()
    exact = live(layer.float(), x.float(), mask if wide is None else mask._replace(bias=wide))
    assert mine.dtype is theirs.dtype
    assert difference(mine, exact) <= 1.1 * difference(theirs, exact)


OPEN_CLIP = {
    "as released": {},
    "quick gelu": {"act_layer": lambda: open_clip_transformer().QuickGELU()},
    "torch's norm": {"norm_layer": nn.LayerNorm},
}
CAUSAL = Mask(torch.full((TOKENS, TOKENS), float("-inf")).triu(1))


@pytest.mark.parametrize("mask", [CAUSAL, Mask()], ids=["causal", "none"])
@pytest.mark.parametrize("options", OPEN_CLIP.values(), ids=OPEN_CLIP)
def test_open_clip_layer_equals_the_live_one(options: dict[str, Any], mask: Mask) -> None:
    layer, x = open_clip_layer(**options), tokens(first=True)
    result = ours(layer, x, mask)
    assert result.shape == (TOKENS, 2, WIDTH)
    assert difference(result, live(layer, x, mask)) <= LIMIT


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("options", OPEN_CLIP.values(), ids=OPEN_CLIP)
def test_open_clip_layer_in_bfloat16_has_the_dtype_and_no_more_than_the_noise(
    options: dict[str, Any], mode: Mode
) -> None:
    layer = open_clip_layer(**options).to(mode.weights)
    _assert_no_more_than_the_noise(layer, tokens(mode.inputs, first=True), CAUSAL, mode)


def test_open_clip_layer_with_the_batch_first_equals_the_live_one() -> None:
    layer = open_clip_layer()
    layer.attn.batch_first = True
    assert difference(ours(layer, tokens(), CAUSAL), live(layer, tokens(), CAUSAL)) <= LIMIT


@pytest.mark.parametrize("make", [clip_layer, open_clip_layer])
def test_layer_leaves_its_input_as_it_was(make: Any) -> None:
    x = tokens(first=make is open_clip_layer)
    before = x.clone()
    result = ours(make(), x, Mask())
    assert torch.equal(x, before)
    assert result.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("field", [name for name in EncoderWeights._fields if name != "key_bias"])
def test_one_weight_wrong_by_a_hundredth_is_noticed(field: str) -> None:
    # A bias of the keys adds the same to all scores of a query, which softmax takes off again.
    (candidate,) = clip.ENTRIES[0].candidates(clip_layer(), nobody)
    found = candidate.read()
    weights = EncoderWeights(*LiveWeights(found.slots).read())
    wrong = weights._replace(**{field: getattr(weights, field) * 1.01})
    right = encoder_layer(tokens(), CAUSAL, weights, found.spec, AS_IT_COMES)
    assert difference(encoder_layer(tokens(), CAUSAL, wrong, found.spec, AS_IT_COMES), right) > 10 * LIMIT


def test_a_token_sees_none_after_it() -> None:
    layer, x = clip_layer(), tokens()
    changed = torch.cat([x[:, :5], x[:, 5:] + 1], dim=1)
    before, after = (ours(layer, each, Mask(None, is_causal=True)) for each in (x, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert difference(after[:, 5:], before[:, 5:]) > 0.1


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("mask_dtype", [F32, BF16])
def test_a_row_that_is_all_masked_is_finite_in_a_narrower_dtype(
    dtype: torch.dtype, mask_dtype: torch.dtype
) -> None:
    mask = Mask(FROM_THE_LEFT.clamp(min=torch.finfo(mask_dtype).min).to(mask_dtype))
    assert ours(clip_layer(), tokens(), mask, Rules(matmul=dtype)).isfinite().all()


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_a_masked_token_stays_unseen_in_a_narrower_dtype(dtype: torch.dtype) -> None:
    layer, x = clip_layer(), tokens()
    changed = torch.cat([x[:, :9], x[:, 9:] * 2], dim=1)
    before, after = (ours(layer, each, Mask(PADDED), Rules(matmul=dtype)) for each in (x, changed))
    assert torch.equal(before[1, :9], after[1, :9])


def test_quick_gelu_is_openais_formula() -> None:
    x = torch.linspace(-4, 4, 41)
    assert torch.allclose(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))
