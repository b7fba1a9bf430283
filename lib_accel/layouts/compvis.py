"""Reads the blocks of the CompVis code line: the `ldm` classes of SD1 and SD2 and the `sgm` classes of SDXL.

Both packages define the same modules under the same names; what differs stands in ldm.py and sgm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from lib_accel.blocks.res import ResSpec
from lib_accel.blocks.sample import OutSpec
from lib_accel.blocks.transformer import AttentionSpec, FeedForwardSpec
from lib_accel.errors import LayoutError
from lib_accel.layouts import reading
from lib_accel.layouts.reading import CONV2D, SEQUENTIAL, SILU, Candidate, Part, Reading, Trust
from lib_accel.layouts.slots import Slot


class Family(NamedTuple):
    """The names of one package's classes."""

    container: str  # TimestepEmbedSequential
    unet: str
    res_block: str
    transformer: str
    transformer_block: str
    attention: tuple[str, ...]
    feed_forward: str
    geglu: str
    downsample: str
    upsample: str
    upcasting_norm: str
    unet_casts_input: bool  # UNetModel.forward casts its input to the model's own dtype


def family(package: str, *, unet_casts_input: bool) -> Family:
    """The classes as both packages name them."""
    attention = f"{package}.modules.attention"
    diffusion = f"{package}.modules.diffusionmodules"
    return Family(
        container=f"{diffusion}.openaimodel.TimestepEmbedSequential",
        unet=f"{diffusion}.openaimodel.UNetModel",
        res_block=f"{diffusion}.openaimodel.ResBlock",
        transformer=f"{attention}.SpatialTransformer",
        transformer_block=f"{attention}.BasicTransformerBlock",
        attention=(f"{attention}.CrossAttention", f"{attention}.MemoryEfficientCrossAttention"),
        feed_forward=f"{attention}.FeedForward",
        geglu=f"{attention}.GEGLU",
        downsample=f"{diffusion}.openaimodel.Downsample",
        upsample=f"{diffusion}.openaimodel.Upsample",
        upcasting_norm=f"{diffusion}.util.GroupNorm32",
        unet_casts_input=unet_casts_input,
    )


def candidates(container: nn.Module, names: Family, trust: Trust) -> list[Candidate]:
    """The blocks of a TimestepEmbedSequential.

    How to call a block of an unknown class, only its container knows.
    """
    return [_candidate(block, names, trust) for block in container._modules.values()]


def _candidate(block: nn.Module | None, names: Family, trust: Trust) -> Candidate:
    if block is None:
        return reading.refused("an empty place among the blocks")
    kind = reading.class_name(type(block))
    with_emb, with_context, plain = _ways_to_call(block)
    if kind == names.transformer:
        return Candidate(
            "transformer",
            lambda: read_frame(block, names, trust),
            with_context,
            lambda: transformer_parts(block, names, trust),
        )
    if kind == names.res_block:
        return Candidate("residual", lambda: read_res_block(block, names, trust), with_emb)
    simple = {
        names.downsample: ("convolution", read_downsample),
        names.upsample: ("upsample", read_upsample),
        CONV2D: ("convolution", read_convolution),
        SILU: ("silu", read_silu),
    }
    if kind not in simple:
        return reading.refused(f"unknown block {kind}")
    name, read = simple[kind]
    return Candidate(name, lambda: read(block, names, trust), plain)


def _ways_to_call(block: nn.Module) -> tuple[Callable[..., Tensor], ...]:
    """As a TimestepEmbedSequential calls residual blocks, transformers, and the rest."""
    return (
        lambda x, emb, context: block(x, emb),
        lambda x, emb, context: block(x, context),
        lambda x, emb, context: block(x),
    )


def transformer_parts(transformer: Any, names: Family, trust: Trust) -> list[list[Part]]:
    """The parts of a SpatialTransformer's blocks, by depth."""
    depths = list(transformer.transformer_blocks)
    if not depths:
        raise LayoutError("SpatialTransformer without blocks")
    return [_parts(block, names, trust) for block in depths]


def _parts(block: Any, names: Family, trust: Trust) -> list[Part]:
    try:
        reading.demand_clean(reading.demand_type(block, names.transformer_block), trust)
        crosses_first = bool(block.disable_self_attn)
    except (LayoutError, AttributeError) as error:
        return [reading.whole(str(error), lambda x, context: block(x, context=context))]
    return [
        _attention_part(block, "norm1", "attn1", crosses_first, names, trust),
        _attention_part(block, "norm2", "attn2", True, names, trust),
        Part(
            "feed-forward",
            lambda: read_feed_forward(block.norm3, block.ff, names, trust),
            lambda x, context: block.ff(block.norm3(x)) + x,
            "ff",
        ),
    ]


def _attention_part(
    block: Any, norm: str, attention: str, crosses: bool, names: Family, trust: Trust
) -> Part:
    def call_live(x: Tensor, context: Tensor | None) -> Tensor:
        mixed = getattr(block, attention)(getattr(block, norm)(x), context=context if crosses else None)
        return mixed + x  # type: ignore[no-any-return]

    return Part(
        "cross attention" if crosses else "self attention",
        lambda: read_attention(getattr(block, norm), getattr(block, attention), names, trust),
        call_live,
        attention,
    )


def read_res_block(block: Any, names: Family, trust: Trust) -> Reading:
    """A residual block without resampling and without scale-shift norm."""
    reading.demand_clean(block, trust)
    for switch in ("updown", "use_scale_shift_norm", "skip_t_emb", "exchange_temb_dims"):
        if getattr(block, switch, False):
            raise LayoutError(f"ResBlock with {switch}")
    norm_in, silu_in, conv_in = reading.children(block.in_layers, SEQUENTIAL, 3, trust)
    silu_embed, embed = reading.children(block.emb_layers, SEQUENTIAL, 2, trust)
    norm_out, silu_out, dropout, conv_out = reading.children(block.out_layers, SEQUENTIAL, 4, trust)
    for silu in (silu_in, silu_embed, silu_out):
        reading.demand_clean(reading.demand_type(silu, SILU), trust)
    reading.demand_no_dropout(dropout, trust)
    norm_in_slots, norm_in_spec = reading.group_norm_spec(norm_in, trust, names.upcasting_norm)
    conv_in_slots, conv_in_spec = reading.conv_spec(conv_in, trust)
    norm_out_slots, norm_out_spec = reading.group_norm_spec(norm_out, trust, names.upcasting_norm)
    conv_out_slots, conv_out_spec = reading.conv_spec(conv_out, trust)
    slots: tuple[Slot, ...] = (
        norm_in_slots + conv_in_slots + reading.linear_slots(embed, trust) + norm_out_slots + conv_out_slots
    )
    skip_spec = None
    if reading.class_name(type(block.skip_connection)) == reading.IDENTITY:
        reading.demand_clean(block.skip_connection, trust)
    else:
        skip_slots, skip_spec = reading.conv_spec(block.skip_connection, trust)
        slots += skip_slots
    return Reading(slots, ResSpec(norm_in_spec, conv_in_spec, norm_out_spec, conv_out_spec, skip_spec))


def read_frame(transformer: Any, names: Family, trust: Trust) -> Reading:
    """Norm and both projections of a SpatialTransformer, linear or 1x1 convolution."""
    reading.demand_clean(transformer, trust)
    norm_slots, norm_spec = reading.group_norm_spec(transformer.norm, trust, names.upcasting_norm)
    slots: tuple[Slot, ...] = norm_slots
    for projection in (transformer.proj_in, transformer.proj_out):
        read = reading.linear_slots if transformer.use_linear else reading.pointwise_slots
        slots += read(projection, trust)
    return Reading(slots, norm_spec)


def read_attention(norm: nn.Module, attention: Any, names: Family, trust: Trust) -> Reading:
    """A layer norm and the attention behind it."""
    norm_slots, eps = reading.layer_norm_eps(norm, trust)
    reading.demand_type(attention, *names.attention)
    reading.demand_clean(attention, trust)
    out, dropout = reading.children(attention.to_out, SEQUENTIAL, 2, trust)
    reading.demand_no_dropout(dropout, trust)
    slots: tuple[Slot, ...] = norm_slots
    for layer in (attention.to_q, attention.to_k, attention.to_v, out):
        slots += reading.linear_slots(layer, trust)
    return Reading(slots, AttentionSpec(eps, attention.heads))


def read_feed_forward(norm: nn.Module, feed_forward: Any, names: Family, trust: Trust) -> Reading:
    """A layer norm and the gated feed-forward behind it."""
    norm_slots, eps = reading.layer_norm_eps(norm, trust)
    reading.demand_type(feed_forward, names.feed_forward)
    reading.demand_clean(feed_forward, trust)
    gated, dropout, out = reading.children(feed_forward.net, SEQUENTIAL, 3, trust)
    reading.demand_no_dropout(dropout, trust)
    (proj,) = reading.children(gated, names.geglu, 1, trust)
    slots = norm_slots + reading.linear_slots(proj, trust) + reading.linear_slots(out, trust)
    return Reading(slots, FeedForwardSpec(eps))


def read_downsample(block: Any, names: Family, trust: Trust) -> Reading:
    """A strided convolution."""
    reading.demand_clean(block, trust)
    if block.dims != 2 or not block.use_conv:
        raise LayoutError(f"Downsample of {block.dims} dimensions, with a convolution: {block.use_conv}")
    slots, spec = reading.conv_spec(block.op, trust)
    return Reading(slots, spec)


def read_upsample(block: Any, names: Family, trust: Trust) -> Reading:
    """Twice the size, then a convolution."""
    reading.demand_clean(block, trust)
    factor = getattr(block, "scale_factor", 2)
    if block.dims != 2 or not block.use_conv or factor != 2:
        raise LayoutError(f"Upsample by {factor} of {block.dims} dimensions, convolution: {block.use_conv}")
    slots, spec = reading.conv_spec(block.conv, trust)
    return Reading(slots, spec)


def read_convolution(layer: nn.Module, names: Family, trust: Trust) -> Reading:
    """A bare convolution: the first of the UNet, a zero convolution, a link of the hint's chain."""
    slots, spec = reading.conv_spec(layer, trust)
    return Reading(slots, spec)


def read_silu(layer: nn.Module, names: Family, trust: Trust) -> Reading:
    """A SiLU between the hint's convolutions."""
    reading.demand_clean(reading.demand_type(layer, SILU), trust)
    return Reading(())


def read_embedding(layers: nn.Module, names: Family, trust: Trust) -> Reading:
    """Linear, SiLU, linear: the timestep's embedding, or the vector's inside its own Sequential."""
    reading.demand_clean(reading.demand_type(layers, SEQUENTIAL), trust)
    if len(layers._modules) == 1:
        (layers,) = reading.children(layers, SEQUENTIAL, 1, trust)
    hidden, silu, out = reading.children(layers, SEQUENTIAL, 3, trust)
    reading.demand_clean(reading.demand_type(silu, SILU), trust)
    return Reading(reading.linear_slots(hidden, trust) + reading.linear_slots(out, trust))


def read_out(layers: nn.Module, names: Family, trust: Trust) -> Reading:
    """Norm, SiLU and convolution at the end of a UNet."""
    norm, silu, conv = reading.children(layers, SEQUENTIAL, 3, trust)
    reading.demand_clean(reading.demand_type(silu, SILU), trust)
    norm_slots, norm_spec = reading.group_norm_spec(norm, trust, names.upcasting_norm)
    conv_slots, conv_spec = reading.conv_spec(conv, trust)
    slots: tuple[Slot, ...] = norm_slots + conv_slots
    return Reading(slots, OutSpec(norm_spec, conv_spec))
