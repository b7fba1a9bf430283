"""Which layers of live diffusers and transformers models the layers of a network mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from lib_accel.lora.architecture import check_context, other_architecture
from lib_accel.lora.delta import needs_inpainting
from lib_accel.lora.formats import Key, Layer, LoraError, Network
from lib_accel.lora.original import original_names
from lib_accel.lora.spelling import flatten


class Place(NamedTuple):
    """One layer of one live model."""

    component: str
    path: str


class Located(NamedTuple):
    """A network's layers at their places, and the names of what it has that fits no layer."""

    layers: Mapping[Place, Layer]
    unknown: tuple[str, ...]


class LiveModels:
    """The layers of some models, as they are while this object is made."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.models = models
        self._modules = {component: dict(model.named_modules()) for component, model in models.items()}
        self._names = {component: _layer_names(modules) for component, modules in self._modules.items()}

    def find(self, key: Key) -> Place | None:
        """The place that a network's layer is for, if there is one."""
        path = self._names.get(key.component, {}).get(key.path)
        return None if path is None else Place(key.component, path)

    def weight(self, place: Place) -> nn.Parameter:
        """The weight of a layer. Raises LoraError where it cannot be changed in place, with the remedy."""
        modules = self._modules[place.component]
        module, parent = modules[place.path], modules[place.path.rpartition(".")[0]]
        name = ".".join(place)
        if _is_peft(module):
            raise LoraError(
                f"{name} carries an adapter of peft ({type(module).__name__}), which would be added to the "
                "fused weights; call pipe.unload_lora_weights() first"
            )
        if _has_fused_projections(parent):
            raise LoraError(
                f"{name} is not used while projections are fused; call pipe.unfuse_qkv_projections() first"
            )
        weight = module._parameters.get("weight")
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            kind = "none" if weight is None else f"a {type(weight).__name__} of {weight.dtype}"
            raise LoraError(
                f"the weight of {name} is no plain floating-point Parameter (it is {kind}); "
                "load the model without quantization"
            )
        if weight.is_meta:
            raise LoraError(
                f"the weight of {name} is on the meta device, as with sequential CPU offload; "
                "use pipe.enable_model_cpu_offload() instead"
            )
        return weight

    def weight_now(self, place: Place) -> nn.Parameter | None:
        """The weight that a layer has now, also inside an adapter of peft; None if it has none."""
        module = self._modules.get(place.component, {}).get(place.path)
        while module is not None and _is_peft(module):
            module = module._modules.get("base_layer")
        return None if module is None else module._parameters.get("weight")


def locate(network: Network, live: LiveModels, components: Collection[str]) -> Located:
    """Finds the layers of these `components` that a network changes.

    Raises LoraError if the network is for another architecture: a model that it has layers for has none of
    them, or its factors do not have the shape of a weight; also where `LiveModels.weight` does.
    """
    wanted = [key for key in network.layers if key.component in components]
    if any(key.component == "unet" for key in wanted):
        check_context(network, live.models)
    layers: dict[Place, Layer] = {}
    unknown = [*network.ignored]
    for key in wanted:
        place = live.find(key)
        if place is None:
            unknown.append(key.spelled)
            continue
        if place in layers:
            raise LoraError(
                f"LoRA {network.name!r} has {key.spelled!r} under a second name; save it with one"
            )
        layers[place] = network.layers[key]
        have, want = weight_shape(layers[place]), _as_kernel(live.weight(place))
        if have != want and not needs_inpainting(have, want):
            detail = f"{key.spelled!r} is for a weight {have}, which here is {want}"
            raise other_architecture(network, live.models, detail)
    _check_any_fits(network, live.models, wanted, {place.component for place in layers})
    return Located(layers, tuple(unknown))


def weight_shape(layer: Layer) -> tuple[int, int, int, int]:
    """The shape (out, in, height, width) of the weight that a network's layer was made for; linear is 1x1."""
    kernel = layer.down if layer.mid is None else layer.mid
    height, width = (1, 1) if kernel.ndim == 2 else kernel.shape[2:]
    return layer.up.shape[0], layer.down.shape[1], height, width


def _as_kernel(weight: Tensor) -> tuple[int, ...]:
    return (*weight.shape, 1, 1) if weight.ndim == 2 else tuple(weight.shape)


def _check_any_fits(
    network: Network, models: Mapping[str, nn.Module], wanted: Collection[Key], found: Collection[str]
) -> None:
    """Raises LoraError for a network of which a whole model, or all models together, have nothing."""
    for component in sorted({key.component for key in wanted} - set(found)):
        if component in models or not found:
            raise other_architecture(network, models, f"the model has none of its layers for {component}")


def _layer_names(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The paths of linear and convolution layers, by every flat name that a LoRA may have for them."""
    paths = [path for path, module in modules.items() if _takes_lora(module)]
    names = {flatten(original): path for original, path in original_names(paths)}
    return names | {flatten(path): path for path in paths}


def _takes_lora(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d)) or _is_peft(module)


def _has_fused_projections(attention: nn.Module) -> bool:
    """Whether diffusers calls one layer made of query, key and value instead of them."""
    return type(getattr(attention, "processor", None)).__name__.startswith("Fused")


def _is_peft(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.tuners.") and "base_layer" in module._modules
