"""Encoder and decoder of the CompVis code line's VAE: a chain of blocks, each with its own layers.

The webui replaces the forward of the attention class anew whenever it hijacks a model, so the chain is walked
from its owner and the attention read as part of it, instead of being met at its own class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.blocks.image import ImageAttentionSpec
from lib_accel.blocks.res import ResSpec
from lib_accel.blocks.sample import OutSpec
from lib_accel.errors import LayoutError
from lib_accel.layouts import reading
from lib_accel.layouts.entries import Entry, Inputs, Unit
from lib_accel.layouts.reading import MODULE, MODULE_LIST, Candidate, Reading, Trust
from lib_accel.layouts.slots import Slot


class Names(NamedTuple):
    """The classes of one package's VAE."""

    residual: str
    attention: tuple[str, ...]
    upsample: str
    downsample: str


def entries(package: str) -> tuple[Entry, ...]:
    """Decoder and encoder of `ldm` or `sgm`."""
    home = f"{package}.modules.diffusionmodules.model"
    names = Names(
        f"{home}.ResnetBlock",
        tuple(f"{home}.{name}" for name in ("AttnBlock", "MemoryEfficientAttnBlock")),
        f"{home}.Upsample",
        f"{home}.Downsample",
    )
    return (
        Unit(f"{home}.Decoder", lambda module, trust: _decoder(module, names, trust), _inputs),
        Unit(f"{home}.Encoder", lambda module, trust: _encoder(module, names, trust), _inputs),
    )


def _inputs(x: Tensor | None = None, **options: Any) -> Inputs:
    if x is None or options:
        raise LayoutError(f"called with {', '.join(options) or 'nothing'}")
    return Inputs(x)


def _decoder(decoder: Any, names: Names, trust: Trust) -> list[Candidate]:
    if decoder.give_pre_end or decoder.tanh_out:
        raise LayoutError(f"Decoder with give_pre_end={decoder.give_pre_end}, tanh_out={decoder.tanh_out}")
    chain = [_convolution(decoder.conv_in, trust), *_middle(decoder.mid, names, trust)]
    for level in reversed(range(decoder.num_resolutions)):
        here = decoder.up[level]
        chain += _level(here, decoder.num_res_blocks + 1, names, trust)
        if level != 0:
            chain.append(_resampling("upsample", here.upsample, names.upsample, trust))
    return [*chain, _out(decoder, trust)]


def _encoder(encoder: Any, names: Names, trust: Trust) -> list[Candidate]:
    chain = [_convolution(encoder.conv_in, trust)]
    for level in range(encoder.num_resolutions):
        here = encoder.down[level]
        chain += _level(here, encoder.num_res_blocks, names, trust)
        if level != encoder.num_resolutions - 1:
            chain.append(_resampling("shrink", here.downsample, names.downsample, trust))
    return [*chain, *_middle(encoder.mid, names, trust), _out(encoder, trust)]


def _level(level: Any, count: int, names: Names, trust: Trust) -> list[Candidate]:
    # Nobody calls these two, so neither their methods nor their hooks matter.
    reading.demand_type(level, MODULE)
    reading.demand_type(level.block, MODULE_LIST)
    if len(level.block) != count or len(level.attn) not in (0, count):
        raise LayoutError(
            f"a level has {len(level.block)} blocks and {len(level.attn)} attentions for {count}"
        )
    chain: list[Candidate] = []
    for index in range(count):
        chain.append(_residual(level.block[index], names, trust))
        if len(level.attn):
            chain.append(_attention(level.attn[index], names, trust))
    return chain


def _middle(middle: Any, names: Names, trust: Trust) -> list[Candidate]:
    reading.demand_type(middle, MODULE)
    return [
        _residual(middle.block_1, names, trust),
        _attention(middle.attn_1, names, trust),
        _residual(middle.block_2, names, trust),
    ]


def _plain(block: nn.Module) -> Callable[[Tensor, Any, Any], Tensor]:
    return lambda x, emb, context: block(x)


def _convolution(layer: nn.Module, trust: Trust) -> Candidate:
    return Candidate("convolution", lambda: Reading(*reading.conv_spec(layer, trust)), _plain(layer))


def _residual(block: Any, names: Names, trust: Trust) -> Candidate:
    return Candidate(
        "residual", lambda: _read_residual(block, names, trust), lambda x, emb, context: block(x, None)
    )


def _read_residual(block: Any, names: Names, trust: Trust) -> Reading:
    reading.demand_type(block, names.residual)
    reading.demand_clean(block, trust)
    reading.demand_no_dropout(block.dropout, trust)
    norm1, norm1_spec = reading.group_norm_spec(block.norm1, trust)
    conv1, conv1_spec = reading.conv_spec(block.conv1, trust)
    norm2, norm2_spec = reading.group_norm_spec(block.norm2, trust)
    conv2, conv2_spec = reading.conv_spec(block.conv2, trust)
    slots: tuple[Slot, ...] = (*norm1, *conv1, *reading.NO_WEIGHTS, *norm2, *conv2)
    skip_spec: ConvSpec | None = None
    if block.in_channels != block.out_channels:
        shortcut = block.conv_shortcut if block.use_conv_shortcut else block.nin_shortcut
        skip, skip_spec = reading.conv_spec(shortcut, trust)
        slots += skip
    return Reading(slots, ResSpec(norm1_spec, conv1_spec, norm2_spec, conv2_spec, skip_spec))


def _attention(block: Any, names: Names, trust: Trust) -> Candidate:
    return Candidate("image attention", lambda: _read_attention(block, names, trust), _plain(block))


def _read_attention(block: Any, names: Names, trust: Trust) -> Reading:
    reading.demand_type(block, *names.attention)
    reading.demand_clean(block, trust)
    method = getattr(block, "attention", None)  # of sgm's classes, whose forward calls it
    function = getattr(method, "__func__", method)
    if function is not None and not reading.is_original(type(block), function) and not trust(function):
        raise LayoutError(f"{type(block).__name__}.attention was replaced")
    norm_slots, norm = reading.group_norm_spec(block.norm, trust)
    slots: tuple[Slot, ...] = norm_slots
    for projection in (block.q, block.k, block.v, block.proj_out):
        slots += reading.pointwise_slots(projection, trust)
    return Reading(slots, ImageAttentionSpec(norm))


def _resampling(kind: str, block: Any, expected: str, trust: Trust) -> Candidate:
    def read() -> Reading:
        reading.demand_type(block, expected)
        reading.demand_clean(block, trust)
        if not block.with_conv:
            raise LayoutError(f"{type(block).__name__} without a convolution")
        return Reading(*reading.conv_spec(block.conv, trust))

    return Candidate(kind, read, _plain(block))


def _out(owner: Any, trust: Trust) -> Candidate:
    norm, conv = owner.norm_out, owner.conv_out  # not the owner, which is known weakly

    def read() -> Reading:
        norm_slots, norm_spec = reading.group_norm_spec(norm, trust)
        conv_slots, conv_spec = reading.conv_spec(conv, trust)
        return Reading((*norm_slots, *conv_slots), OutSpec(norm_spec, conv_spec))

    def call_live(x: Tensor, emb: Any, context: Any) -> Tensor:
        return conv(nn.functional.silu(norm(x)))  # type: ignore[no-any-return]

    return Candidate("out", read, call_live)
