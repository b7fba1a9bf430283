"""The layers of a CLIP text encoder of the transformers package."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
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

# Those of the package compute attention and nothing else; under other names anything may be registered.
_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

# What a layer is handed on and makes no use of.
_PASSED_ON = frozenset(("output_hidden_states", "return_dict"))

# Transformers 5 hooks the layers of a model to keep what they return, where that is asked for. What attention
# returns beside its result, nobody asks a text encoder for; see _inputs.
_CAPTURE = "transformers.utils.output_capturing"


def _candidates(layer: nn.Module, trust: Trust) -> list[Candidate]:
    return [Candidate("encoder layer", lambda: _read(layer, trust))]


def _read(layer: Any, trust: Trust) -> Reading:
    attention, mlp = layer.self_attn, layer.mlp
    reading.demand_type(attention, *_ATTENTION)
    reading.demand_clean(attention, trust, harmless_hooks=_CAPTURE)
    implementation = getattr(attention.config, "_attn_implementation", "eager")
    if implementation not in _IMPLEMENTATIONS:
        raise LayoutError(f"attention is computed by {implementation!r}")
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
    is_causal: bool | None = False,
    **kwargs: Any,
) -> Inputs:
    if output_attentions or _collects_attentions():
        raise LayoutError("the attention's weights are asked for")
    # Not by their truth, as a tensor may be among them.
    given = {name for name, value in kwargs.items() if value is not None and value is not False}
    if unknown := given - _PASSED_ON:
        raise LayoutError(f"CLIPEncoderLayer is called with {', '.join(sorted(unknown))}")
    masks = [mask for mask in (attention_mask, causal_attention_mask) if mask is not None]
    if any(not isinstance(mask, Tensor) or mask.dim() != 4 for mask in masks):
        raise LayoutError("CLIPEncoderLayer is called with a mask of another form than scores have")
    if not masks:
        return Inputs(hidden_states, context=Mask(None, bool(is_causal)))
    if len(masks) == 2 and any(mask.dtype is torch.bool for mask in masks):
        raise LayoutError("CLIPEncoderLayer is called with two masks that do not add up")
    return Inputs(hidden_states, context=Mask(masks[0] if len(masks) == 1 else masks[0] + masks[1]))


def _collects_attentions() -> bool:
    collector = getattr(sys.modules.get(_CAPTURE), "_active_collector", None)
    return collector is not None and "attentions" in (collector.get() or ())


def _output(layer: Any, result: Tensor, kwargs: Mapping[str, Any]) -> Any:
    # Before transformers 5 a layer and its attention took two masks, and the layer returned a tuple. Asks the
    # attention, whose forward is the package's own, as _read saw: the layer's may be wrapped by anybody.
    return (result,) if _takes_two_masks(type(layer.self_attn).forward) else result


@functools.lru_cache(maxsize=8)
def _takes_two_masks(forward: Callable[..., Any]) -> bool:
    return "causal_attention_mask" in inspect.signature(forward).parameters


ENTRIES: tuple[Entry, ...] = (
    Unit(f"{_HOME}.CLIPEncoderLayer", _candidates, _inputs, _output),
    Model(f"{_HOME}.CLIPEncoder", begins_pictures=True),
)
