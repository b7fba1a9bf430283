"""The layers of a CLIP text encoder of the transformers package."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lib_accel.blocks.encoder import EncoderSpec, Mask
from lib_accel.errors import LayoutError
from lib_accel.layouts import reading
from lib_accel.layouts.entries import Entry, Inputs, Model, Unit
from lib_accel.layouts.reading import Candidate, Reading, Trust
from lib_accel.layouts.slots import Slot

_HOME = "transformers.models.clip.modeling_clip"
_ATTENTION = (f"{_HOME}.CLIPAttention", f"{_HOME}.CLIPSdpaAttention", f"{_HOME}.CLIPFlashAttention2")
_MLP = f"{_HOME}.CLIPMLP"
_ACTIVATIONS = {
    "transformers.activations.QuickGELUActivation": "quick_gelu",
    "transformers.activations.GELUActivation": "gelu",
}

# Transformers 5 hooks the layers of a model to keep what they return, where that is asked for. What attention
# returns beside its result, nobody asks a text encoder for; see _inputs.
_CAPTURE = "transformers.utils.output_capturing"


def _candidates(layer: nn.Module, trust: Trust) -> list[Candidate]:
    return [Candidate("encoder layer", lambda: _read(layer, trust))]


def _read(layer: Any, trust: Trust) -> Reading:
    attention, mlp = layer.self_attn, layer.mlp
    reading.demand_type(attention, *_ATTENTION)
    reading.demand_clean(attention, trust, harmless_hooks=_CAPTURE)
    if attention.dropout and attention.training:
        raise LayoutError(f"attention dropout of {attention.dropout}")
    reading.demand_clean(reading.demand_type(mlp, _MLP), trust)
    activation = reading.demand_type(mlp.activation_fn, *_ACTIVATIONS)
    reading.demand_clean(activation, trust)
    norm1, eps1 = reading.layer_norm_eps(layer.layer_norm1, trust)
    norm2, eps2 = reading.layer_norm_eps(layer.layer_norm2, trust)
    slots: tuple[Slot, ...] = norm1
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        slots += reading.linear_slots(projection, trust)
    slots += norm2 + reading.linear_slots(mlp.fc1, trust) + reading.linear_slots(mlp.fc2, trust)
    name = _ACTIVATIONS[reading.class_name(type(activation))]
    return Reading(slots, EncoderSpec(attention.num_heads, (eps1, eps2), name))


def _inputs(
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    causal_attention_mask: Tensor | None = None,
    output_attentions: bool | None = False,
    *,
    is_causal: bool = False,
    **kwargs: Any,
) -> Inputs:
    if output_attentions or _collects_attentions():
        raise LayoutError("the attention's weights are asked for")
    unknown = {name for name, value in kwargs.items() if value} - {"output_hidden_states", "return_dict"}
    if unknown:
        raise LayoutError(f"CLIPEncoderLayer is called with {', '.join(sorted(unknown))}")
    masks = [mask for mask in (attention_mask, causal_attention_mask) if mask is not None]
    if any(not isinstance(mask, Tensor) or mask.dim() != 4 for mask in masks):
        raise LayoutError("CLIPEncoderLayer is called with a mask of another form than scores have")
    if len(masks) == 2:
        return Inputs(hidden_states, context=Mask(masks[0] + masks[1]))
    bias = masks[0] if masks else None
    return Inputs(hidden_states, context=Mask(bias, is_causal and bias is None))


def _collects_attentions() -> bool:
    collector = getattr(sys.modules.get(_CAPTURE), "_active_collector", None)
    return collector is not None and "attentions" in (collector.get() or ())


def _output(layer: nn.Module, result: Tensor, kwargs: Mapping[str, Any]) -> Any:
    # Before transformers 5 a layer took both masks, and returned a tuple.
    takes_both = "causal_attention_mask" in inspect.signature(type(layer).forward).parameters
    return (result,) if takes_both else result


ENTRIES: tuple[Entry, ...] = (
    Unit(f"{_HOME}.CLIPEncoderLayer", _candidates, _inputs, _output),
    Model(f"{_HOME}.CLIPEncoder"),
)
