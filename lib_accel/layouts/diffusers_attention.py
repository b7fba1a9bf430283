"""diffusers' `Attention`: what it must be for ours to be the same, and the one that a VAE's image has."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lib_accel.blocks.image import ImageAttentionSpec
from lib_accel.errors import LayoutError
from lib_accel.layouts import reading
from lib_accel.layouts.diffusers_checks import MODELS, demand_unset, demand_values, single
from lib_accel.layouts.entries import Entry, Inputs, Unit
from lib_accel.layouts.reading import Reading, Trust
from lib_accel.layouts.slots import Slot

_HOME = f"{MODELS}.attention_processor"
_ATTENTION = f"{_HOME}.Attention"

# Attention of the same result, computed in other ways, and whether it heeds upcast_attention.
_PROCESSORS = {
    f"{_HOME}.{name}": upcasts
    for name, upcasts in (
        ("AttnProcessor", True),
        ("SlicedAttnProcessor", True),
        ("AttnProcessor2_0", False),
        ("XFormersAttnProcessor", False),
    )
}

# What an attention must be for ours to be the same: attribute, value.
_PLAIN = (
    ("spatial_norm", None),
    ("norm_q", None),
    ("norm_k", None),
    ("norm_cross", None),
    ("add_k_proj", None),
    ("rescale_output_factor", 1.0),
)


def projections(attention: Any, trust: Trust) -> tuple[Slot, ...]:
    """Slots of the four linear layers of an attention that computes nothing but the plain formula.

    Raises LayoutError if it computes anything else.
    """
    _demand_plain(attention, trust)
    slots: tuple[Slot, ...] = ()
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        slots += reading.linear_slots(layer, trust)
    out, dropout = reading.listed(attention.to_out, 2)
    reading.demand_no_dropout(dropout, trust)
    return slots + reading.linear_slots(out, trust)


def _demand_plain(attention: Any, trust: Trust) -> None:
    reading.demand_type(attention, _ATTENTION)
    reading.demand_clean(attention, trust)
    demand_values(attention, *_PLAIN, ("inner_kv_dim", attention.inner_dim))
    processor = reading.class_name(type(attention.processor))
    if processor not in _PROCESSORS:
        raise LayoutError(f"has the attention processor {processor}")
    if _PROCESSORS[processor]:
        demand_values(attention, ("upcast_attention", False))
    size = attention.inner_dim / attention.heads
    if abs(attention.scale - size**-0.5) > 1e-6:
        raise LayoutError(f"scales by {attention.scale}, expected {size**-0.5}")


def _is_of_an_image(module: nn.Module) -> bool:
    return getattr(module, "group_norm", None) is not None


def _read_of_an_image(attention: Any, trust: Trust) -> Reading:
    demand_values(attention, ("residual_connection", True))
    norm_slots, norm = reading.group_norm_spec(attention.group_norm, trust)
    return Reading((*norm_slots, *projections(attention, trust)), ImageAttentionSpec(norm, attention.heads))


def _inputs(hidden_states: Tensor, **kwargs: Any) -> Inputs:
    demand_unset(kwargs, "Attention")
    if hidden_states.dim() != 4:
        raise LayoutError(f"Attention with a group norm over {hidden_states.dim()} dimensions, expected 4")
    return Inputs(hidden_states)


ENTRIES: tuple[Entry, ...] = (
    Unit(_ATTENTION, single("image attention", _read_of_an_image), _inputs, applies=_is_of_an_image),
)
