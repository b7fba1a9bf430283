"""diffusers' `Transformer2DModel` over images, and the parts of each block inside."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lib_accel.blocks.transformer import AttentionSpec, FeedForwardSpec
from lib_accel.errors import LayoutError
from lib_accel.layouts import reading
from lib_accel.layouts.diffusers_attention import projections
from lib_accel.layouts.diffusers_checks import MODELS, demand_unset, demand_values
from lib_accel.layouts.entries import Entry, Inputs, Unit
from lib_accel.layouts.reading import Candidate, Part, Reading, Trust
from lib_accel.layouts.slots import Slot

_BLOCK = f"{MODELS}.attention.BasicTransformerBlock"
_FEED_FORWARD = f"{MODELS}.attention.FeedForward"
_GEGLU = f"{MODELS}.activations.GEGLU"


def _candidates(module: Any, trust: Trust) -> list[Candidate]:
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
    return [_parts(block, trust) for block in reading.listed(transformer.transformer_blocks)]


def _parts(block: Any, trust: Trust) -> list[Part]:
    try:
        reading.demand_clean(reading.demand_type(block, _BLOCK), trust)
        demand_values(block, ("norm_type", "layer_norm"), ("pos_embed", None))
        if block.attn2 is None:
            raise LayoutError("BasicTransformerBlock without a second attention")
    except (LayoutError, AttributeError) as error:
        return [reading.whole(str(error), lambda x, context: _call_block(block, x, context))]
    return [
        _attention_part(block, "norm1", "attn1", bool(block.only_cross_attention), trust),
        _attention_part(block, "norm2", "attn2", True, trust),
        Part(
            "feed-forward",
            lambda: _read_feed_forward(block, trust),
            lambda x, context: _call_feed_forward(block, x),
            "ff",
        ),
    ]


def _call_block(block: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """As Transformer2DModel calls it; somebody else's block may insist on its arguments."""
    return block(  # type: ignore[no-any-return]
        x,
        attention_mask=None,
        encoder_hidden_states=context,
        encoder_attention_mask=None,
        timestep=None,
        cross_attention_kwargs=None,
        class_labels=None,
    )


def _attention_part(block: Any, norm: str, attention: str, crosses: bool, trust: Trust) -> Part:
    def call_live(x: Tensor, context: Tensor | None) -> Tensor:
        normed = getattr(block, norm)(x)
        source = context if crosses else None
        mixed = getattr(block, attention)(normed, encoder_hidden_states=source, attention_mask=None)
        return mixed + x  # type: ignore[no-any-return]

    return Part(
        "cross attention" if crosses else "self attention",
        lambda: _read_attention(getattr(block, norm), getattr(block, attention), trust),
        call_live,
        attention,
    )


def _read_attention(norm: nn.Module, attention: Any, trust: Trust) -> Reading:
    norm_slots, eps = reading.layer_norm_eps(norm, trust)
    slots = (*norm_slots, *projections(attention, trust))
    demand_values(attention, ("group_norm", None), ("residual_connection", False))
    return Reading(slots, AttentionSpec(eps, attention.heads))


def _call_feed_forward(block: Any, x: Tensor) -> Tensor:
    normed = block.norm3(x)
    if block._chunk_size is None:
        return block.ff(normed) + x  # type: ignore[no-any-return]
    home: Any = sys.modules[_BLOCK.rpartition(".")[0]]
    chunked = home._chunked_feed_forward(block.ff, normed, block._chunk_dim, block._chunk_size)
    return chunked + x  # type: ignore[no-any-return]


def _read_feed_forward(block: Any, trust: Trust) -> Reading:
    demand_values(block, ("_chunk_size", None))
    norm_slots, eps = reading.layer_norm_eps(block.norm3, trust)
    reading.demand_clean(reading.demand_type(block.ff, _FEED_FORWARD), trust)
    gated, dropout, out = reading.listed(block.ff.net, 3)
    reading.demand_no_dropout(dropout, trust)
    (proj,) = reading.children(gated, _GEGLU, 1, trust)
    slots = (*norm_slots, *reading.linear_slots(proj, trust), *reading.linear_slots(out, trust))
    return Reading(slots, FeedForwardSpec(eps))


def _inputs(
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
    # No UNet2DConditionModel gives the first three: they are for norms of other types than layer_norm.
    unusual = {
        "timestep": timestep,
        "added_cond_kwargs": added_cond_kwargs,
        "class_labels": class_labels,
        "attention_mask": attention_mask,
        "encoder_attention_mask": encoder_attention_mask,
        **(cross_attention_kwargs or {}),
    }
    demand_unset(unusual, "Transformer2DModel")
    if isinstance(encoder_hidden_states, list):  # to our steps, a context for each depth
        raise LayoutError("Transformer2DModel is called with a list of contexts")
    return Inputs(hidden_states, context=encoder_hidden_states)


def _output(module: nn.Module, result: Tensor, kwargs: Mapping[str, Any]) -> Any:
    if not kwargs.get("return_dict", True):
        return (result,)
    return sys.modules[type(module).__module__].Transformer2DModelOutput(sample=result)


ENTRIES: tuple[Entry, ...] = (
    Unit(f"{MODELS}.transformers.transformer_2d.Transformer2DModel", _candidates, _inputs, _output),
)
