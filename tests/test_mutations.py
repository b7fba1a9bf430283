"""The comparison with the host's own modules notices a small fault in any one of our functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from lib_accel.blocks import ops, res, sample, transformer
from tests.fakes.host import attached
from tests.fakes.models import (
    CHANNELS,
    CONTEXT_WIDTH,
    difference,
    inputs,
    run,
    tiny_sd2_unet,
    tiny_sgm_unet,
    tiny_unet,
)
from tests.test_equality import LIMIT

# Each function of a block with the position of its weights.
FUNCTIONS = {
    "res": (res, "res_block", 2),
    "attend": (transformer, "attend", 2),
    "feed_forward": (transformer, "feed_forward", 1),
    "enter": (transformer, "enter", 1),
    "leave": (transformer, "leave", 2),
    "convolution": (sample, "convolution", 1),
    "up": (sample, "upsample", 1),
    "out": (sample, "out_convolution", 1),
    "embed": (sample, "embed", 1),
}
WEIGHTS = {
    "res": res.ResWeights,
    "attend": transformer.AttentionWeights,
    "feed_forward": transformer.FeedForwardWeights,
    "enter": transformer.FrameWeights,
    "leave": transformer.FrameWeights,
    "convolution": sample.ConvWeights,
    "up": sample.ConvWeights,
    "out": sample.OutWeights,
    "embed": sample.EmbeddingWeights,
}
# What a function is given but leaves to its sibling.
_UNUSED = {
    "enter": ("proj_out", "proj_out_bias"),
    "leave": ("norm", "norm_bias", "proj_in", "proj_in_bias"),
    "attend": ("query_bias", "key_bias", "value_bias"),
}
WRONG_WEIGHTS = [
    (kind, field)
    for kind, weights in WEIGHTS.items()
    for field in weights._fields
    if field not in _UNUSED.get(kind, ())
]
# Every convolution of the model in turn: the first block, the downsampling one.
CONVOLUTIONS = {"in": 0, "down": 1}
RESIDUALS = ["res", "attend", "feed_forward", "leave"]


@pytest.mark.parametrize(("kind", "field"), WRONG_WEIGHTS)
@pytest.mark.parametrize("make", [tiny_unet, tiny_sgm_unet])
def test_one_weight_wrong_by_a_hundredth_is_noticed(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module], kind: str, field: str
) -> None:
    _break_one_call(monkeypatch, kind, lambda w: getattr(w, field) is not None, _shifted(field))
    assert _error(make()) > LIMIT


@pytest.mark.parametrize("which", CONVOLUTIONS)
@pytest.mark.parametrize("field", sample.ConvWeights._fields)
def test_one_wrong_convolution_is_noticed(monkeypatch: pytest.MonkeyPatch, which: str, field: str) -> None:
    seen: list[Any] = []

    def is_its_turn(weights: Any) -> bool:
        seen.append(weights)
        return len(seen) == 1 + CONVOLUTIONS[which]

    _break_one_call(monkeypatch, "convolution", is_its_turn, _shifted(field))
    assert _error(tiny_unet()) > LIMIT


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("field", ["query", "key", "value", "out"])
def test_one_wrong_attention_is_noticed(monkeypatch: pytest.MonkeyPatch, kind: str, field: str) -> None:
    width = CONTEXT_WIDTH if kind == "cross" else CHANNELS
    _break_one_call(monkeypatch, "attend", lambda w: w.key.shape[1] == width, _shifted(field))
    assert _error(tiny_sd2_unet()) > LIMIT


@pytest.mark.parametrize("kind", RESIDUALS)
def test_one_skipped_branch_is_noticed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    home, name, _ = FUNCTIONS[kind]
    trunk = 1 if kind == "leave" else 0
    original, skipped = getattr(home, name), []

    def skipping(*args: Any) -> Tensor:
        result = original(*args)
        if skipped or args[trunk].shape != result.shape:
            return result
        skipped.append(result)
        return args[trunk]

    monkeypatch.setattr(home, name, skipping)
    assert _error(tiny_unet()) > LIMIT
    assert skipped


@pytest.mark.parametrize("index", range(4))
def test_a_dropped_skip_is_noticed(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    unet = tiny_unet()
    _break_output_block(unet, index, monkeypatch)
    assert _error(unet) > LIMIT


def test_attention_without_scaling_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unscaled(query: Tensor, key: Tensor, value: Tensor, heads: int, rules: Any) -> Tensor:
        return original(query * (query.shape[-1] // heads) ** 0.5, key, value, heads, rules)

    original = ops.attention
    monkeypatch.setattr(transformer, "attention", unscaled)
    assert _error(tiny_unet()) > LIMIT


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_each_function_is_run(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    broken = _break_one_call(monkeypatch, kind, lambda w: True, lambda w: w)
    assert _error(tiny_sgm_unet()) <= LIMIT
    assert broken


def _shifted(field: str) -> Callable[[Any], Any]:
    def change(weights: Any) -> Any:
        weight = getattr(weights, field)
        return weights._replace(**{field: weight + 0.01 * weight.roll(1, 0)})

    return change


def _break_one_call(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    applies: Callable[[Any], bool],
    change: Callable[[Any], Any],
) -> list[Any]:
    """Changes the weights of the first call of a function to which that applies; gives the calls changed."""
    home, name, position = FUNCTIONS[kind]
    original = getattr(home, name)
    broken: list[Any] = []

    def faulty(*args: Any) -> Tensor:
        weights = args[position]
        if not broken and applies(weights):
            broken.append(weights)
            args = (*args[:position], change(weights), *args[position + 1 :])
        return original(*args)

    monkeypatch.setattr(home, name, faulty)
    return broken


def _break_output_block(unet: Any, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeroes the skip that reaches one output block when we, and not the host, compute it."""
    channels = unet.output_blocks[index][0].channels
    original, seen = res.res_block, []

    def without_skip(x: Tensor, *args: Any) -> Tensor:
        if x.shape[1] == channels and not seen:
            seen.append(x)
            x = x.clone()
            x[:, -CHANNELS:] = 0
        return original(x, *args)

    monkeypatch.setattr(res, "res_block", without_skip)


def _error(unet: nn.Module) -> float:
    """How far the engine's picture is from the host's, which runs none of our functions."""
    given = inputs(vector=getattr(unet, "num_classes", None) is not None)
    with attached() as engine:
        ours = run(unet, given)
        assert (engine.generation.host, engine.generation.direct > 0) == (0, True)
    return difference(ours, run(unet, given))
