"""The blocks of diffusers' UNet2DConditionModel, ControlNetModel and AutoencoderKL.

Each block is met at its own class, and diffusers' own code walks the model: FreeU, DeepCache, residuals of
control models and whatever else hangs on that walk stays as it is. Its plain layers at both ends of a model
(first and last convolution, last norm) are called by that walk too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lib_accel.blocks.image import ImageAttentionSpec
from lib_accel.blocks.res import ResSpec
from lib_accel.blocks.transformer import AttentionSpec, FeedForwardSpec
from lib_accel.errors import LayoutError
from lib_accel.layouts import reading
from lib_accel.layouts.entries import Entry, Inputs, Model, Unit
from lib_accel.layouts.reading import CONV2D, MODULE_LIST, SILU, Candidate, Part, Reading, Trust
from lib_accel.layouts.slots import Slot

_MODELS = "diffusers.models"
_ATTENTION = f"{_MODELS}.attention_processor.Attention"
_TRANSFORMER_BLOCK = f"{_MODELS}.attention.BasicTransformerBlock"
_FEED_FORWARD = f"{_MODELS}.attention.FeedForward"
_GEGLU = f"{_MODELS}.activations.GEGLU"

# Attention of the same result, computed in other ways, and whether it heeds upcast_attention.
_PROCESSORS = {
    f"{_MODELS}.attention_processor.{name}": upcasts
    for name, upcasts in (
        ("AttnProcessor", True),
        ("SlicedAttnProcessor", True),
        ("AttnProcessor2_0", False),
        ("XFormersAttnProcessor", False),
    )
}

# What an attention must be for ours to be the same: attribute, value.
_PLAIN_ATTENTION = (
    ("spatial_norm", None),
    ("norm_q", None),
    ("norm_k", None),
    ("norm_cross", None),
    ("add_k_proj", None),
    ("fused_projections", False),
    ("rescale_output_factor", 1.0),
)


def _single(kind: str, read: Any) -> Any:
    """The one candidate of a unit that is itself a block of this kind."""
    return lambda module, trust: [Candidate(kind, lambda: read(module, trust))]


def demand_values(module: Any, *expected: tuple[str, Any]) -> None:
    """Raises LayoutError unless each attribute that the module has is as expected."""
    for name, value in expected:
        found = getattr(module, name, value)
        if found is not value and found != value:
            raise LayoutError(f"{type(module).__name__} with {name}={_shown(found)}, expected {value}")


def _shown(value: Any) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else str(value)


def _demand_unset(kwargs: Mapping[str, Any], owner: str) -> None:
    for name, value in kwargs.items():
        if value is not None:
            raise LayoutError(f"{owner} is called with {name}")


# Residual block: of UNet and ControlNet with an embedding, of the VAE without


def _read_residual(block: Any, trust: Trust) -> Reading:
    if block.time_emb_proj is not None:
        demand_values(block, ("time_embedding_norm", "default"), ("skip_time_act", False))
    demand_values(
        block,
        ("upsample", None),
        ("downsample", None),
        ("output_scale_factor", 1.0),
    )
    reading.demand_clean(reading.demand_type(block.nonlinearity, SILU), trust)
    reading.demand_no_dropout(block.dropout, trust)
    norm1, norm1_spec = reading.group_norm_spec(block.norm1, trust)
    conv1, conv1_spec = reading.conv_spec(block.conv1, trust)
    embed = reading.NO_WEIGHTS
    if block.time_emb_proj is not None:
        embed = reading.linear_slots(block.time_emb_proj, trust)
    norm2, norm2_spec = reading.group_norm_spec(block.norm2, trust)
    conv2, conv2_spec = reading.conv_spec(block.conv2, trust)
    slots: tuple[Slot, ...] = (*norm1, *conv1, *embed, *norm2, *conv2)
    skip_spec = None
    if block.conv_shortcut is not None:
        skip, skip_spec = reading.conv_spec(block.conv_shortcut, trust)
        slots += skip
    return Reading(slots, ResSpec(norm1_spec, conv1_spec, norm2_spec, conv2_spec, skip_spec))


def _residual_inputs(input_tensor: Tensor, temb: Tensor | None = None, **kwargs: Any) -> Inputs:
    _demand_unset(kwargs, "ResnetBlock2D")
    return Inputs(input_tensor, emb=temb)


# Transformer


def _transformer(module: Any, trust: Trust) -> list[Candidate]:
    return [
        Candidate("transformer", lambda: _read_frame(module, trust), None, lambda: _depths(module, trust))
    ]


def _read_frame(transformer: Any, trust: Trust) -> Reading:
    demand_values(transformer, ("is_input_continuous", True))
    norm_slots, norm = reading.group_norm_spec(transformer.norm, trust)
    slots: tuple[Slot, ...] = norm_slots
    read = reading.linear_slots if transformer.use_linear_projection else reading.pointwise_slots
    for projection in (transformer.proj_in, transformer.proj_out):
        slots += read(projection, trust)
    return Reading(slots, norm)


def _depths(transformer: Any, trust: Trust) -> list[list[Part]]:
    reading.demand_type(transformer.transformer_blocks, MODULE_LIST)
    return [_parts(block, trust) for block in transformer.transformer_blocks]


def _parts(block: Any, trust: Trust) -> list[Part]:
    try:
        reading.demand_clean(reading.demand_type(block, _TRANSFORMER_BLOCK), trust)
        demand_values(block, ("norm_type", "layer_norm"), ("pos_embed", None))
        if block.attn2 is None:
            raise LayoutError("BasicTransformerBlock without a second attention")
    except (LayoutError, AttributeError) as error:
        return [reading.whole(str(error), lambda x, context: block(x, encoder_hidden_states=context))]
    return [
        _attention_part(block, "norm1", "attn1", bool(block.only_cross_attention), trust),
        _attention_part(block, "norm2", "attn2", True, trust),
        Part(
            "feed-forward",
            lambda: _read_feed_forward(block, trust),
            lambda x, context: block.ff(block.norm3(x)) + x,
            "ff",
        ),
    ]


def _attention_part(block: Any, norm: str, attention: str, crosses: bool, trust: Trust) -> Part:
    def call_live(x: Tensor, context: Tensor | None) -> Tensor:
        source = context if crosses else None
        mixed = getattr(block, attention)(getattr(block, norm)(x), encoder_hidden_states=source)
        return mixed + x  # type: ignore[no-any-return]

    return Part(
        "cross attention" if crosses else "self attention",
        lambda: _read_attention(getattr(block, norm), getattr(block, attention), trust),
        call_live,
        attention,
    )


def _demand_plain_attention(attention: Any, trust: Trust) -> None:
    reading.demand_type(attention, _ATTENTION)
    reading.demand_clean(attention, trust)
    demand_values(attention, *_PLAIN_ATTENTION)
    processor = reading.class_name(type(attention.processor))
    if processor not in _PROCESSORS:
        raise LayoutError(f"has the attention processor {processor}")
    if _PROCESSORS[processor]:
        demand_values(attention, ("upcast_attention", False))
    size = attention.inner_dim / attention.heads
    if abs(attention.scale - size**-0.5) > 1e-6:
        raise LayoutError(f"scales by {attention.scale}, expected {size**-0.5}")


def _out_projection(attention: Any, trust: Trust) -> tuple[Slot, Slot]:
    out, dropout = reading.listed(attention.to_out, 2)
    reading.demand_no_dropout(dropout, trust)
    return reading.linear_slots(out, trust)


def _read_attention(norm: nn.Module, attention: Any, trust: Trust) -> Reading:
    norm_slots, eps = reading.layer_norm_eps(norm, trust)
    _demand_plain_attention(attention, trust)
    demand_values(attention, ("group_norm", None), ("residual_connection", False))
    slots: tuple[Slot, ...] = norm_slots
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        slots += reading.linear_slots(layer, trust)
    return Reading((*slots, *_out_projection(attention, trust)), AttentionSpec(eps, attention.heads))


def _read_feed_forward(block: Any, trust: Trust) -> Reading:
    demand_values(block, ("_chunk_size", None))
    norm_slots, eps = reading.layer_norm_eps(block.norm3, trust)
    reading.demand_clean(reading.demand_type(block.ff, _FEED_FORWARD), trust)
    gated, dropout, out = reading.listed(block.ff.net, 3)
    reading.demand_no_dropout(dropout, trust)
    (proj,) = reading.children(gated, _GEGLU, 1, trust)
    slots = (*norm_slots, *reading.linear_slots(proj, trust), *reading.linear_slots(out, trust))
    return Reading(slots, FeedForwardSpec(eps))


def _transformer_inputs(
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    timestep: Any = None,
    added_cond_kwargs: Any = None,
    class_labels: Any = None,
    cross_attention_kwargs: Mapping[str, Any] | None = None,
    attention_mask: Any = None,
    encoder_attention_mask: Any = None,
    return_dict: bool = True,
) -> Inputs:
    # timestep, added_cond_kwargs and class_labels reach only norms of other types than layer_norm
    masks = {"attention_mask": attention_mask, "encoder_attention_mask": encoder_attention_mask}
    _demand_unset({**masks, **(cross_attention_kwargs or {})}, "Transformer2DModel")
    return Inputs(hidden_states, context=encoder_hidden_states)


def _transformer_output(module: nn.Module, result: Tensor, kwargs: Mapping[str, Any]) -> Any:
    if not kwargs.get("return_dict", True):
        return (result,)
    return sys.modules[type(module).__module__].Transformer2DModelOutput(sample=result)


# Resampling, embedding, hint


def _named_conv(block: Any, trust: Trust) -> Reading:
    demand_values(block, ("use_conv", True), ("use_conv_transpose", False), ("norm", None))
    return Reading(*reading.conv_spec(block.conv if block.name == "conv" else block.Conv2d_0, trust))


def _read_upsample(block: Any, trust: Trust) -> Reading:
    demand_values(block, ("interpolate", True))
    return _named_conv(block, trust)


def _resize_inputs(hidden_states: Tensor, output_size: Any = None, **kwargs: Any) -> Inputs:
    _demand_unset(kwargs, "Upsample2D")
    return Inputs(hidden_states, context=None if output_size is None else tuple(output_size))


def _downsample(block: Any, trust: Trust) -> list[Candidate]:
    def read() -> Reading:
        demand_values(block, ("use_conv", True), ("norm", None))
        return Reading(*reading.conv_spec(block.conv, trust))

    return [Candidate("shrink" if block.padding == 0 else "convolution", read)]


def _image_inputs(hidden_states: Tensor, **kwargs: Any) -> Inputs:
    _demand_unset(kwargs, "the block")
    return Inputs(hidden_states)


def _read_embedding(block: Any, trust: Trust) -> Reading:
    demand_values(block, ("post_act", None))
    reading.demand_clean(reading.demand_type(block.act, SILU), trust)
    slots = (*reading.linear_slots(block.linear_1, trust), *reading.linear_slots(block.linear_2, trust))
    return Reading(slots)


def _embedding_inputs(sample: Tensor, condition: Tensor | None = None) -> Inputs:
    _demand_unset({"condition": condition}, "TimestepEmbedding")
    return Inputs(sample)


def _hint(block: Any, trust: Trust) -> list[Candidate]:
    layers = (block.conv_in, *reading.listed(block.blocks), block.conv_out)
    for layer in layers:
        reading.demand_type(layer, CONV2D)
    chain: list[Candidate] = []
    for layer in layers:
        chain += [_convolution(layer, trust), Candidate("silu", lambda: Reading(()))]
    return chain[:-1]


def _convolution(layer: nn.Module, trust: Trust) -> Candidate:
    return Candidate(
        "convolution",
        lambda: Reading(*reading.conv_spec(layer, trust)),
        lambda x, emb, context: layer(x),
    )


def _hint_inputs(conditioning: Tensor) -> Inputs:
    return Inputs(conditioning)


# Attention of the VAE


def _is_image_attention(module: nn.Module) -> bool:
    return getattr(module, "group_norm", None) is not None


def _read_image_attention(attention: Any, trust: Trust) -> Reading:
    _demand_plain_attention(attention, trust)
    demand_values(attention, ("residual_connection", True))
    norm_slots, norm = reading.group_norm_spec(attention.group_norm, trust)
    slots: tuple[Slot, ...] = norm_slots
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        slots += reading.linear_slots(layer, trust)
    spec = ImageAttentionSpec(norm, attention.heads)
    return Reading((*slots, *_out_projection(attention, trust)), spec)


def _attention_inputs(hidden_states: Tensor, **kwargs: Any) -> Inputs:
    _demand_unset(kwargs, "Attention")
    if hidden_states.dim() != 4:
        raise LayoutError(f"Attention with a group norm over {hidden_states.dim()} dimensions, expected 4")
    return Inputs(hidden_states)


ENTRIES: tuple[Entry, ...] = (
    Unit(f"{_MODELS}.resnet.ResnetBlock2D", _single("residual", _read_residual), _residual_inputs),
    Unit(
        f"{_MODELS}.transformers.transformer_2d.Transformer2DModel",
        _transformer,
        _transformer_inputs,
        _transformer_output,
    ),
    Unit(f"{_MODELS}.upsampling.Upsample2D", _single("resize", _read_upsample), _resize_inputs),
    Unit(f"{_MODELS}.downsampling.Downsample2D", _downsample, _image_inputs),
    Unit(f"{_MODELS}.embeddings.TimestepEmbedding", _single("embedding", _read_embedding), _embedding_inputs),
    Unit(f"{_MODELS}.controlnets.controlnet.ControlNetConditioningEmbedding", _hint, _hint_inputs),
    Unit(
        _ATTENTION,
        _single("image attention", _read_image_attention),
        _attention_inputs,
        applies=_is_image_attention,
    ),
    Model(f"{_MODELS}.unets.unet_2d_condition.UNet2DConditionModel"),
    Model(f"{_MODELS}.controlnets.controlnet.ControlNetModel"),
    Model(f"{_MODELS}.autoencoders.vae.Decoder"),
    Model(f"{_MODELS}.autoencoders.vae.Encoder"),
)
