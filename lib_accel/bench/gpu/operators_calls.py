"""Calls of operators as blocks make them: arguments without values, as the tuner knows calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from lib_accel.bench.gpu import operators_shapes as shapes
from lib_accel.bench.gpu.models import Where
from lib_accel.bench.gpu.operators_shapes import VAE, Shape
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators import layout
from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.operators.layer_norm import LayerNormUse
from lib_accel.blocks.res import ResSpec, ResWeights
from lib_accel.blocks.rules import Rules
from lib_accel.tuning.signature import Call, Form

_EMBEDDING = 1280  # of a UNet's time
_TOY_EMBEDDING = 64
_PROMPTS = {"sd15": 768, "sdxl": 2048}  # channels
_TOY_PROMPT = 32
_CONVOLUTION = ConvSpec(padding=(1, 1))


class _Maker(NamedTuple):
    """Makes the arguments of one shape."""

    shape: Shape
    where: Where

    @property
    def rules(self) -> Rules:
        """Those of a GPU's autocast to the dtype of the models."""
        return Rules(matmul=self.where.dtype, norm=torch.float32)

    def tensor(self, *sizes: int) -> Form:
        """Contiguous, or, of four dimensions, as images and weights lie here."""
        is_last = len(sizes) == 4 and self.shape.is_last
        form = torch.channels_last if is_last else torch.contiguous_format
        stride = torch.empty(sizes, device="meta", memory_format=form).stride()
        return Form(sizes, stride, self.where.dtype, str(self.where.device))

    def norm(self, *, silu: bool) -> GroupNormUse:
        """A group norm of the model's, before a convolution."""
        is_vae = self.shape.model == VAE
        spec = GroupNormSpec(groups=32, eps=1e-6 if is_vae else 1e-5, upcast=not is_vae)
        return GroupNormUse(spec, silu, self.rules.norm, self.rules.matmul)


def call_at(shape: Shape, where: Where) -> Call:
    """The operator's call at that shape, in the dtype of `where` and on its device."""
    return Call(shape.operator, _ARGUMENTS[shape.operator](_Maker(shape, where)))


def _attention(make: _Maker) -> tuple[Any, ...]:
    batch, tokens, channels = make.shape.sizes
    source = make.tensor(batch, make.shape.source or tokens, channels)
    query = make.tensor(batch, tokens, channels)
    return query, source, source, make.shape.heads, make.rules.matmul


def _projections(make: _Maker) -> tuple[Any, ...]:
    batch, tokens, channels = make.shape.sizes
    x, query = make.tensor(batch, tokens, channels), make.tensor(channels, channels)
    context, other = None, query
    if make.shape.source:
        width = _TOY_PROMPT if make.where.is_toy else _PROMPTS[make.shape.model]
        context, other = make.tensor(batch, make.shape.source, width), make.tensor(channels, width)
    return x, context, query, other, other, make.shape.heads, make.rules.matmul


def _gated_linear(make: _Maker) -> tuple[Any, ...]:
    channels = make.shape.sizes[-1]
    gated = 8 * channels  # four times as wide inside, values and gates
    return (
        make.tensor(*make.shape.sizes),
        make.tensor(gated, channels),
        make.tensor(gated),
        make.rules.matmul,
    )


def _linear_add(make: _Maker) -> tuple[Any, ...]:
    batch, tokens, channels = make.shape.sizes
    x, weight = make.tensor(batch, tokens, make.shape.inner), make.tensor(channels, make.shape.inner)
    return x, weight, make.tensor(channels), make.tensor(batch, tokens, channels), make.rules.matmul


def _layer_norm(make: _Maker) -> tuple[Any, ...]:
    each = make.tensor(make.shape.sizes[-1])
    return make.tensor(*make.shape.sizes), each, each, LayerNormUse(1e-5, make.rules.norm, make.rules.matmul)


def _group_norm(make: _Maker) -> tuple[Any, ...]:
    each = make.tensor(make.shape.sizes[1])
    return make.tensor(*make.shape.sizes), each, each, make.norm(silu=True)


def _joined_norm(make: _Maker) -> tuple[Any, ...]:
    image, each = make.tensor(*make.shape.sizes), make.tensor(2 * make.shape.sizes[1])
    return image, image, each, each, make.norm(silu=True)


def _convolution_norm(make: _Maker) -> tuple[Any, ...]:
    x, weight, each = _convolution(make)
    shift = None if make.shape.model == VAE else make.tensor(x.shape[0], x.shape[1])
    return x, weight, each, shift, each, each, _CONVOLUTION, make.norm(silu=True), make.rules.matmul


def _convolution_add(make: _Maker) -> tuple[Any, ...]:
    x, weight, bias = _convolution(make)
    return x, weight, bias, x, _CONVOLUTION, make.rules.matmul


def _residual(make: _Maker) -> tuple[Any, ...]:
    x, weight, each = _convolution(make)
    width = _TOY_EMBEDDING if make.where.is_toy else _EMBEDDING
    is_vae, channels = make.shape.model == VAE, x.shape[1]
    emb = None if is_vae else make.tensor(x.shape[0], width)
    embed = (None, None) if is_vae else (make.tensor(channels, width), each)
    weights: Any = (each, each, weight, each, *embed, each, each, weight, each)
    norm = make.norm(silu=True).norm
    spec = ResSpec(norm, _CONVOLUTION, norm, _CONVOLUTION, None)
    first: Any = x
    return layout.arguments(first, emb, ResWeights(*weights), spec, make.rules)  # type: ignore[arg-type]


def _convolution(make: _Maker) -> tuple[Form, Form, Form]:
    """An image, and weight and bias of a convolution that leaves its size."""
    channels = make.shape.sizes[1]
    return make.tensor(*make.shape.sizes), make.tensor(channels, channels, 3, 3), make.tensor(channels)


_ARGUMENTS: Mapping[str, Callable[[_Maker], tuple[Any, ...]]] = MappingProxyType(
    {
        shapes.ATTENTION: _attention,
        shapes.PROJECTIONS_PACKED: _projections,
        shapes.GATED_LINEAR: _gated_linear,
        shapes.LINEAR_ADD: _linear_add,
        shapes.LAYER_NORM: _layer_norm,
        shapes.GROUP_NORM: _group_norm,
        shapes.JOINED_NORM: _joined_norm,
        shapes.CONVOLUTION_NORM: _convolution_norm,
        shapes.CONVOLUTION_ADD: _convolution_add,
        shapes.RESIDUAL_LAYOUT: _residual,
    }
)
