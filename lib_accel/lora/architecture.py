"""Which Stable Diffusion a LoRA was made for, and which one a model is: the width of the context tells."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lib_accel.lora.network import LoraError, Network

_BY_CONTEXT_WIDTH = {768: "SD1", 1024: "SD2", 1280: "the SDXL refiner", 2048: "SDXL"}
_BY_TEXT_WIDTH = {768: "SD1", 1024: "SD2"}
_CONTEXT_LAYERS = ("attn2_to_k", "attn2_to_v")
_TEXT_LAYERS = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1")


def check_family(network: Network, models: Mapping[str, nn.Module], *, by_shape: bool) -> None:
    """Raises LoraError if the network is for another Stable Diffusion than the models are.

    The width of the text context that its UNet layers read tells, if `by_shape`; where it has no such layers,
    what its header says, if that is one of the names we know.
    """
    made_for_width, is_now = _file_width(network, "unet", _CONTEXT_LAYERS), _context_width(models)
    if is_now is None:
        return
    if made_for_width is not None:
        if by_shape and made_for_width != is_now:
            raise other_architecture(network, models)
        return
    here = _BY_CONTEXT_WIDTH.get(is_now)
    if here is not None and network.family in _BY_CONTEXT_WIDTH.values() and network.family != here:
        raise other_architecture(network, models, f"its header says {network.family}")


def other_architecture(network: Network, models: Mapping[str, nn.Module], detail: str = "") -> LoraError:
    """The error for a network that does not fit, with what it seems to be made for and what the model is."""
    because = f" ({detail})" if detail else ""
    return LoraError(
        f"LoRA {network.name!r} was made for another architecture{because}: it looks like "
        f"{_describe(network)}, the model has {_describe_models(models)}; "
        "use a LoRA made for this model, or load the model it was made for"
    )


def _describe(network: Network) -> str:
    width = _file_width(network, "unet", _CONTEXT_LAYERS)
    text_width = _file_width(network, "text_encoder", _TEXT_LAYERS)
    if width is not None:
        seems = f"{_BY_CONTEXT_WIDTH.get(width, 'none of SD1, SD2, SDXL')} (context width {width})"
    elif network.family is not None:
        seems = f"{network.family} (by its header)"
    elif any(key.component == "text_encoder_2" for key in network.layers):
        seems = "SDXL (it has a second text encoder)"
    elif text_width is not None and not any(key.component == "unet" for key in network.layers):
        seems = (
            f"{_BY_TEXT_WIDTH.get(text_width, 'none of SD1, SD2, SDXL')} (text encoder width {text_width})"
        )
    else:
        seems = "none of SD1, SD2, SDXL"
    return f"{seems}, with layers such as {next(iter(network.layers)).spelled!r}"


def _describe_models(models: Mapping[str, nn.Module]) -> str:
    width = _context_width(models)
    parts = ", ".join(sorted(models))
    if width is None:
        return f"the parts {parts}"
    return f"context width {width} ({_BY_CONTEXT_WIDTH.get(width, 'no usual one')}) and the parts {parts}"


def _file_width(network: Network, component: str, endings: tuple[str, ...]) -> int | None:
    """Input width of the first layer of a component that ends so and whose tensors tell it."""
    for key, layer in network.layers.items():
        if key.component == component and key.parameter == "weight" and key.path.endswith(endings):
            inputs = layer.shape[1] if len(layer.shape) > 1 else None
            if isinstance(inputs, int):
                return inputs
    return None


def _context_width(models: Mapping[str, nn.Module]) -> int | None:
    if "unet" not in models:
        return None
    for path, module in models["unet"].named_modules():
        if path.endswith("attn2.to_k") and isinstance(module, nn.Linear):
            return module.in_features
    return None
