"""What we stand in front of in diffusers: the blocks of UNets, ControlNets and AutoencoderKL.

Each block is met at its own class, and diffusers' own code walks the model: FreeU, DeepCache, residuals of
control models and whatever else hangs on that walk stays as it is. Its plain layers at both ends of a model
(first and last convolution, last norm) are called by that walk too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.blocks.res import ResSpec
from lib_accel.layouts import diffusers_attention, diffusers_transformer, reading
from lib_accel.layouts.diffusers_checks import MODELS, demand_unset, demand_values, single
from lib_accel.layouts.entries import Arguments, Entry, Inputs, Model, Unit
from lib_accel.layouts.reading import CONV2D, SILU, Candidate, Reading, Trust
from lib_accel.layouts.slots import Slot

_CONTROL_HOMES = ("controlnets.controlnet", "controlnet")  # the latter up to diffusers 0.31


def _read_residual(block: Any, trust: Trust) -> Reading:
    demand_values(block, ("upsample", None), ("downsample", None), ("output_scale_factor", 1.0))
    reading.demand_clean(reading.demand_type(block.nonlinearity, SILU), trust)
    reading.demand_no_dropout(block.dropout, trust)
    norm1, norm1_spec = reading.group_norm_spec(block.norm1, trust)
    conv1, conv1_spec = reading.conv_spec(block.conv1, trust)
    embed = reading.NO_WEIGHTS  # in a VAE
    if block.time_emb_proj is not None:
        demand_values(block, ("time_embedding_norm", "default"), ("skip_time_act", False))
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
    demand_unset(kwargs, "ResnetBlock2D")
    return Inputs(input_tensor, emb=temb)


def _read_upsample(block: Any, trust: Trust) -> Reading:
    demand_values(
        block, ("use_conv", True), ("use_conv_transpose", False), ("norm", None), ("interpolate", True)
    )
    return Reading(*reading.conv_spec(block.conv if block.name == "conv" else block.Conv2d_0, trust))


def _resize_inputs(hidden_states: Tensor, output_size: Any = None, **kwargs: Any) -> Inputs:
    demand_unset(kwargs, "Upsample2D")
    return Inputs(hidden_states, context=None if output_size is None else tuple(output_size))


def _downsample(block: Any, trust: Trust) -> list[Candidate]:
    def read() -> Reading:
        demand_values(block, ("use_conv", True), ("norm", None))
        return Reading(*reading.conv_spec(block.conv, trust))

    return [Candidate("shrink" if block.padding == 0 else "convolution", read)]


def _downsample_inputs(hidden_states: Tensor, **kwargs: Any) -> Inputs:
    demand_unset(kwargs, "Downsample2D")
    return Inputs(hidden_states)


def _read_embedding(block: Any, trust: Trust) -> Reading:
    demand_values(block, ("post_act", None))
    reading.demand_clean(reading.demand_type(block.act, SILU), trust)
    slots = (*reading.linear_slots(block.linear_1, trust), *reading.linear_slots(block.linear_2, trust))
    return Reading(slots)


def _embedding_inputs(sample: Tensor, condition: Tensor | None = None) -> Inputs:
    demand_unset({"condition": condition}, "TimestepEmbedding")
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


def _with_timestep(given: Arguments) -> Arguments:
    """As the model's own first lines do it: a timestep is a number, or a tensor that may be on the CPU."""
    args, kwargs = given
    place = 1 if len(args) > 1 else "timestep"
    held: Any = list(args) if place == 1 else dict(kwargs)
    sample = args[0] if args else kwargs.get("sample")
    if not isinstance(sample, Tensor) or (place != 1 and place not in held):
        return given
    step = held[place]
    if type(step) in (int, float):
        held[place] = torch.tensor([step], dtype=_NUMBERS[type(step)], device=sample.device)
    elif isinstance(step, Tensor) and step.dim() == 0:
        held[place] = step.to(sample.device)
    return Arguments(tuple(held), kwargs) if place == 1 else Arguments(args, held)


_NUMBERS = {int: torch.int64, float: torch.float64}


ENTRIES: tuple[Entry, ...] = (
    Unit(f"{MODELS}.resnet.ResnetBlock2D", single("residual", _read_residual), _residual_inputs),
    *diffusers_transformer.ENTRIES,
    Unit(f"{MODELS}.upsampling.Upsample2D", single("resize", _read_upsample), _resize_inputs),
    Unit(f"{MODELS}.downsampling.Downsample2D", _downsample, _downsample_inputs),
    Unit(f"{MODELS}.embeddings.TimestepEmbedding", single("embedding", _read_embedding), _embedding_inputs),
    *(
        Unit(f"{MODELS}.{home}.ControlNetConditioningEmbedding", _hint, _hint_inputs)
        for home in _CONTROL_HOMES
    ),
    *diffusers_attention.ENTRIES,
    Model(f"{MODELS}.unets.unet_2d_condition.UNet2DConditionModel", denoises=True, as_tensors=_with_timestep),
    *(
        Model(f"{MODELS}.{home}.ControlNetModel", denoises=True, as_tensors=_with_timestep)
        for home in _CONTROL_HOMES
    ),
    Model(f"{MODELS}.autoencoders.vae.Decoder", as_tensors=lambda given: given),
    Model(f"{MODELS}.autoencoders.vae.Encoder"),
)
