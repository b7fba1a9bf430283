"""The residual block of UNet and ControlNet."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks import joined
from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec, GroupNormUse
from lib_accel.blocks.ops import conv2d, conv2d_add, conv2d_norm_silu, group_norm, linear
from lib_accel.blocks.pieces import (
    Norm,
    convolution_by,
    convolved,
    convolved_add,
    dtype_of,
    normed,
    pieces_for_norm,
)
from lib_accel.blocks.rules import Pieces, Rules


class ResWeights(NamedTuple):
    """Weights of a residual block with `channels` in and `out` out."""

    norm_in: Tensor  # (channels,)
    norm_in_bias: Tensor
    conv_in: Tensor  # (out, channels, 3, 3)
    conv_in_bias: Tensor | None
    embed: Tensor | None  # (out, embedding), None in a VAE, which has no embedding
    embed_bias: Tensor | None
    norm_out: Tensor  # (out,)
    norm_out_bias: Tensor
    conv_out: Tensor  # (out, out, 3, 3)
    conv_out_bias: Tensor | None
    skip: Tensor | None = None  # (out, channels, 1, 1), None where channels == out
    skip_bias: Tensor | None = None


class ResSpec(NamedTuple):
    """What of a residual block is not a tensor."""

    norm_in: GroupNormSpec
    conv_in: ConvSpec
    norm_out: GroupNormSpec
    conv_out: ConvSpec
    skip: ConvSpec | None


def res_block(
    x: Tensor | joined.Images, emb: Tensor | None, weights: ResWeights, spec: ResSpec, rules: Rules
) -> Tensor:
    """`skip(x) + conv(silu(norm(conv(silu(norm(x))) + embed(silu(emb)))))`, without `embed` if emb is None.

    x: (batch, channels, height, width), or two images that are joined to it; emb: (batch, embedding); the
    result is (batch, out, height, width).
    """
    w = weights
    images = (x,) if isinstance(x, Tensor) else x
    channels = max(w.norm_in.shape[0], w.norm_out.shape[0])
    if (cut := pieces_for_norm(images[0], channels, rules)) is not None:
        x = x if isinstance(x, Tensor) else torch.cat(x, dim=1)
        return _in_pieces(x, _shift(emb, w, rules), w, spec, rules, cut)
    h, x = _norm_in(x, w, spec, rules)
    handed = [h]
    del h
    into, out = (w.conv_in, w.conv_in_bias), (w.norm_out, w.norm_out_bias)
    h = conv2d_norm_silu(handed, into, spec.conv_in, _shift(emb, w, rules), out, spec.norm_out, rules)
    if w.skip is not None and spec.skip is not None:
        x = conv2d(x, w.skip, w.skip_bias, spec.skip, rules)
    return conv2d_add(h, w.conv_out, w.conv_out_bias, x, spec.conv_out, rules)


def _shift(emb: Tensor | None, w: ResWeights, rules: Rules) -> Tensor | None:
    """What the embedding adds to each channel, (batch, out)."""
    return None if emb is None or w.embed is None else linear(F.silu(emb), w.embed, w.embed_bias, rules)


def _norm_in(x: Tensor | joined.Images, w: ResWeights, spec: ResSpec, rules: Rules) -> tuple[Tensor, Tensor]:
    """The first norm with its SiLU, as the convolution after it takes it, and the image that it is of."""
    if isinstance(x, Tensor):
        normed = group_norm(x, w.norm_in, w.norm_in_bias, spec.norm_in, rules, silu=True, to=rules.matmul)
        return normed, x
    return joined.norm_silu(x, (w.norm_in, w.norm_in_bias), spec.norm_in, rules)


def _in_pieces(
    x: Tensor, shift: Tensor | None, w: ResWeights, spec: ResSpec, rules: Rules, cut: Pieces
) -> Tensor:
    """The block with no more than one image of its own, in which the result is written over what it is of."""

    def norm(weight: Tensor, bias: Tensor, own: GroupNormSpec) -> Norm:
        return Norm(weight, bias, GroupNormUse(own, silu=True, dtype=rules.norm, out_dtype=rules.matmul))

    first = normed(x, norm(w.norm_in, w.norm_in_bias, spec.norm_in), cut)
    image = convolved(first, convolution_by(rules, w.conv_in, w.conv_in_bias, spec.conv_in), cut, shift)
    second = normed(image, norm(w.norm_out, w.norm_out_bias, spec.norm_out), cut)
    last = convolution_by(rules, w.conv_out, w.conv_out_bias, spec.conv_out)
    if w.skip is None or spec.skip is None:
        return convolved_add(second, last, cut, lambda begin, end: x[:, :, begin:end], x.dtype)
    skip, bias, way = w.skip, w.skip_bias, spec.skip
    if (*skip.shape[2:], *way.stride, *way.padding) != (1, 1, 1, 1, 0, 0):  # its rows depend on others
        other = conv2d(x, skip, bias, way, rules)
        return convolved_add(second, last, cut, lambda begin, end: other[:, :, begin:end], other.dtype)

    def skipped(begin: int, end: int) -> Tensor:
        return conv2d(x[:, :, begin:end], skip, bias, way, rules)

    return convolved_add(second, last, cut, skipped, dtype_of(x, rules))
