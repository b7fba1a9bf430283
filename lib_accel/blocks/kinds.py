"""The kinds of block by name: the function, the weights it takes, and which of its sizes vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from lib_accel.blocks import encoder, image, res, sample, transformer
from lib_accel.blocks.rules import Rules

EMB, CONTEXT = "emb", "context"

_IMAGE = (0, 2, 3)  # of (batch, channels, height, width)
_TOKENS = (0, 1)  # of (batch, tokens, channels)
_ROWS = (0,)  # of (batch, channels)


class Kind(NamedTuple):
    """How blocks of one kind are computed.

    `function` is called with x, what it `takes` besides, the weights, the spec and the rules.
    """

    function: Callable[..., Tensor]
    weights: Callable[..., Any]  # the function's weights, of a flat sequence
    takes: str | None = None  # EMB, CONTEXT, or nothing
    varies: tuple[int, ...] = _IMAGE  # dimensions of x
    varies_besides: tuple[int, ...] = ()  # dimensions of what it takes
    is_compiled: bool = False  # whether a compiler finds several operations to join
    kernels: int = 1  # about how many a GPU runs for it


def compute(kind: Kind, x: Tensor, besides: Any, weights: Sequence[Any], spec: Any, rules: Rules) -> Tensor:
    """The block's output; `besides` is what the kind takes besides x, else ignored."""
    own = kind.weights(*weights)
    if kind.takes is None:
        return kind.function(x, own, spec, rules)
    return kind.function(x, besides, own, spec, rules)


# A lone convolution is one operation already, and a text encoder runs once a prompt.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "residual": Kind(
            lambda *given: res.res_block(*given), res.ResWeights, EMB, _IMAGE, _ROWS, True, kernels=10
        ),
        "transformer block": Kind(
            lambda *given: transformer.transformer_block(*given),
            transformer.block_weights,
            CONTEXT,
            _TOKENS,
            _TOKENS,
            is_compiled=True,
            kernels=25,
        ),
        "upsample": Kind(
            lambda *given: sample.upsample(*given), sample.ConvWeights, is_compiled=True, kernels=2
        ),
        "out": Kind(
            lambda *given: sample.out_convolution(*given), sample.OutWeights, is_compiled=True, kernels=3
        ),
        "image attention": Kind(
            lambda *given: image.image_attention(*given),
            image.ImageAttentionWeights,
            is_compiled=True,
            kernels=8,
        ),
        "resize": Kind(lambda *given: sample.resize(*given), sample.ConvWeights, CONTEXT, kernels=2),
        "convolution": Kind(lambda *given: sample.convolution(*given), sample.ConvWeights),
        "shrink": Kind(lambda *given: image.shrink(*given), sample.ConvWeights, kernels=2),
        "embedding": Kind(
            lambda *given: sample.embed(*given), sample.EmbeddingWeights, None, _ROWS, kernels=3
        ),
        "encoder layer": Kind(
            lambda *given: encoder.encoder_layer(*given), encoder.EncoderWeights, CONTEXT, _TOKENS, kernels=12
        ),
    }
)
