"""The layers of an OpenCLIP text encoder, as the webui's SD2 and SDXL models have them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lib_accel.blocks.encoder import EncoderSpec, Mask
from lib_accel.errors import LayoutError
from lib_accel.layouts import reading
from lib_accel.layouts.entries import Entry, Inputs, Unit
from lib_accel.layouts.reading import IDENTITY, LAYER_NORM, SEQUENTIAL, Candidate, Reading, Trust
from lib_accel.layouts.slots import Slot

_HOME = "open_clip.transformer"
_ATTENTION = "torch.nn.modules.activation.MultiheadAttention"
_OUT = "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"

# OpenCLIP's own returns the dtype it is given. The linear layer after it casts either to the same.
_NORMS = (LAYER_NORM, f"{_HOME}.LayerNorm")
_ACTIVATIONS = {"torch.nn.modules.activation.GELU": "gelu", f"{_HOME}.QuickGELU": "quick_gelu"}


def _candidates(layer: nn.Module, trust: Trust) -> list[Candidate]:
    return [Candidate("encoder layer", lambda: _read(layer, trust))]


def _read(layer: Any, trust: Trust) -> Reading:
    for scale in (layer.ls_1, layer.ls_2):
        reading.demand_clean(reading.demand_type(scale, IDENTITY), trust)
    function = getattr(layer.attention, "__func__", layer.attention)
    if not reading.is_original(type(layer), function) and not trust(function):
        raise LayoutError("ResidualAttentionBlock.attention was replaced")
    hidden, activation, out = reading.children(layer.mlp, SEQUENTIAL, 3, trust)
    reading.demand_clean(reading.demand_type(activation, *_ACTIVATIONS), trust)
    if getattr(activation, "approximate", "none") != "none":
        raise LayoutError(f"GELU approximated by {activation.approximate}")
    norm1, eps1 = reading.layer_norm_eps(layer.ln_1, trust, *_NORMS)
    norm2, eps2 = reading.layer_norm_eps(layer.ln_2, trust, *_NORMS)
    slots = (*norm1, *_attention(layer.attn, trust), *norm2)
    slots += reading.linear_slots(hidden, trust) + reading.linear_slots(out, trust)
    name = _ACTIVATIONS[reading.class_name(type(activation))]
    heads, tokens_first = layer.attn.num_heads, not layer.attn.batch_first
    return Reading(slots, EncoderSpec(heads, (eps1, eps2), name, tokens_first))


def _attention(attention: Any, trust: Trust) -> tuple[Slot, ...]:
    reading.demand_clean(reading.demand_type(attention, _ATTENTION), trust)
    if not attention._qkv_same_embed_dim or attention.bias_k is not None or attention.add_zero_attn:
        raise LayoutError("MultiheadAttention of another form than self-attention over one width")
    if attention.dropout and attention.training:
        raise LayoutError(f"attention dropout of {attention.dropout}")
    out = reading.demand_type(attention.out_proj, _OUT)
    packed = (Slot(attention._parameters, "in_proj_weight"), Slot(attention._parameters, "in_proj_bias"))
    # Nobody calls out_proj: the attention takes its weights.
    return (*packed, *reading.NO_WEIGHTS, *reading.NO_WEIGHTS, *reading.weight_and_bias(out))


def _inputs(
    q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
) -> Inputs:
    if k_x is not None or v_x is not None:
        raise LayoutError("ResidualAttentionBlock is called with another source")
    if attn_mask is not None and (attn_mask.dim() != 2 or not attn_mask.is_floating_point()):
        raise LayoutError(
            "ResidualAttentionBlock is called with a mask of another form than (tokens, tokens)"
        )
    return Inputs(q_x, context=Mask(attn_mask))


ENTRIES: tuple[Entry, ...] = (Unit(f"{_HOME}.ResidualAttentionBlock", _candidates, _inputs),)
