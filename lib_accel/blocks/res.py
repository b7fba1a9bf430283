"""The residual block of UNet and ControlNet."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.operators.group_norm import GroupNormSpec
from lib_accel.blocks.ops import conv2d, conv2d_add, conv2d_norm_silu, group_norm, linear
from lib_accel.blocks.rules import Rules


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


def res_block(x: Tensor, emb: Tensor | None, weights: ResWeights, spec: ResSpec, rules: Rules) -> Tensor:
    """`skip(x) + conv(silu(norm(conv(silu(norm(x))) + embed(silu(emb)))))`, without `embed` if emb is None.

    x: (batch, channels, height, width); emb: (batch, embedding); the result is (batch, out, height, width).
    """
    w = weights
    h = group_norm(x, w.norm_in, w.norm_in_bias, spec.norm_in, rules, silu=True, to=rules.matmul)
    shift = None
    if emb is not None and w.embed is not None:
        shift = linear(F.silu(emb), w.embed, w.embed_bias, rules)
    into, out = (w.conv_in, w.conv_in_bias), (w.norm_out, w.norm_out_bias)
    h = conv2d_norm_silu(h, into, spec.conv_in, shift, out, spec.norm_out, rules)
    if w.skip is not None and spec.skip is not None:
        x = conv2d(x, w.skip, w.skip_bias, spec.skip, rules)
    return conv2d_add(h, w.conv_out, w.conv_out_bias, x, spec.conv_out, rules)
