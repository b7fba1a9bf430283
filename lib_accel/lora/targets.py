"""Which parameters of live diffusers and transformers models the layers of a network mean."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from lib_accel.lora.architecture import check_family, other_architecture
from lib_accel.lora.kinds import KINDS, changed_shape
from lib_accel.lora.network import Key, Layer, LoraError, Multiple, Network, Shape
from lib_accel.lora.original import original_names
from lib_accel.lora.spelling import flatten


class Place(NamedTuple):
    """One parameter of one live model."""

    component: str
    path: str
    parameter: str = "weight"

    @property
    def name(self) -> str:
        """The layer, for messages."""
        return f"{self.component}.{self.path}"


class Located(NamedTuple):
    """A network's layers at their places, and the names of what it has that fits no layer."""

    layers: Mapping[Place, Layer]
    unknown: tuple[str, ...]


class LiveModels:
    """The layers of some models, as they were when this object was made; all are held weakly."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = weakref.WeakValueDictionary(models)
        self._walks = {component: list(_walk(model)) for component, model in models.items()}
        modules = {component: dict(model.named_modules()) for component, model in models.items()}
        self._names = {component: _layer_names(each) for component, each in modules.items()}
        self._modules = {
            component: {path: weakref.ref(module) for path, module in each.items()}
            for component, each in modules.items()
        }
        self._shapes: dict[Place, torch.Size] = {}
        self.plans: weakref.WeakKeyDictionary[Network, dict[frozenset[str], Located]] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """Those that still live."""
        return dict(self._models)

    def is_current(self, models: Mapping[str, nn.Module]) -> bool:
        """Whether `models` are these, with the layers that they had, of the same shapes where we looked."""
        return (
            models == self.models
            and models.keys() == self._walks.keys()
            and all(_is_same_walk(self._walks[name], model) for name, model in models.items())
            and all(self._has_shape(place, shape) for place, shape in self._shapes.items())
        )

    def _has_shape(self, place: Place, shape: torch.Size) -> bool:
        weight = self.weight_now(place)
        return weight is not None and weight.shape == shape

    def module(self, component: str, path: str) -> nn.Module | None:
        """The live module there, if there is one."""
        reference = self._modules.get(component, {}).get(path)
        return None if reference is None else reference()

    def find(self, key: Key) -> Place | None:
        """The place that a network's layer is for, if there is one."""
        path = self._names.get(key.component, {}).get(key.path)
        if path is None:
            return None
        place = Place(key.component, path, key.parameter)
        has_none = key.parameter != "weight" and self.weight_now(place) is None
        return None if has_none else place

    def weight(self, place: Place) -> nn.Parameter:
        """The weight of a layer. Raises LoraError where it cannot be changed in place, with the remedy."""
        module, parent = (
            self.module(*place[:2]),
            self.module(place.component, place.path.rpartition(".")[0]),
        )
        assert module is not None
        name = place.name
        if _is_peft(module):
            raise LoraError(
                f"{name} carries an adapter of peft ({type(module).__name__}), which would be added to the "
                "fused weights; call pipe.unload_lora_weights() first"
            )
        if _has_fused_projections(parent):
            raise LoraError(
                f"{name} is not used while projections are fused; call pipe.unfuse_qkv_projections() first"
            )
        weight = module._parameters.get(place.parameter)
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            kind = "none" if weight is None else f"a {type(weight).__name__} of {weight.dtype}"
            raise LoraError(
                f"the {place.parameter} of {name} is no plain floating-point Parameter (it is {kind}); "
                "load the model without quantization"
            )
        if weight.is_meta:
            raise LoraError(
                f"the {place.parameter} of {name} is on the meta device, as with sequential CPU offload; "
                "use pipe.enable_model_cpu_offload() instead"
            )
        self._shapes[place] = weight.shape
        return weight

    def weight_now(self, place: Place) -> nn.Parameter | None:
        """The weight that a layer has now, also inside an adapter of peft; None if it has none."""
        module = self.module(*place[:2])
        while module is not None and _is_peft(module):
            module = module._modules.get("base_layer")
        return None if module is None else module._parameters.get(place.parameter)


def _walk(module: nn.Module) -> Iterator[tuple[str, weakref.ref[nn.Module]]]:
    """Name and module of all that is in a module, at any depth; many times faster than named_modules."""
    for name, child in module._modules.items():
        if child is not None:
            yield name, weakref.ref(child)
            if child._modules:
                yield from _walk(child)


def _is_same_walk(before: Sequence[tuple[str, weakref.ref[nn.Module]]], module: nn.Module) -> bool:
    # References to one living module are equal, and those to a dead one equal nothing else.
    return list(_walk(module)) == before


def locate(network: Network, live: LiveModels, components: Collection[str]) -> Located:
    """Finds the parameters of these `components` that a network changes, once for as long as both live.

    Raises LoraError if the network is for another architecture: its header says so, a model that it has
    layers for has none of them, or its tensors are for a weight of another shape. Also where
    `LiveModels.weight` does.
    """
    plans = live.plans.setdefault(network, {})
    wanted = frozenset(components)
    if wanted not in plans:
        plans[wanted] = _locate(network, live, wanted)
    return plans[wanted]


def _locate(network: Network, live: LiveModels, components: Collection[str]) -> Located:
    models = live.models
    wanted = [key for key in network.layers if key.component in components]
    check_family(network, models, by_shape=any(key.component == "unet" for key in wanted))
    layers: dict[Place, Layer] = {}
    unknown = [*network.ignored]
    for key in wanted:
        place, layer = live.find(key), network.layers[key]
        if place is None:
            if not KINDS[layer.kind].is_implied:
                unknown.append(key.spelled)
            continue
        if place in layers:
            raise LoraError(
                f"LoRA {network.name!r} has {key.spelled!r} under a second name; save it with one"
            )
        layers[place] = layer
        have, want = layer.shape, tuple(live.weight(place).shape)
        if changed_shape(have, want) is None:
            detail = (
                f"{key.spelled!r} is for a weight {_shown(have, have)}, which here is {_shown(want, have)}"
            )
            raise other_architecture(network, models, detail)
    _check_any_fits(network, models, wanted, {place.component for place in layers})
    return Located(layers, tuple(dict.fromkeys(unknown)))


def _shown(shape: Shape, like: Shape) -> str:
    """A shape for a message, a linear layer's as a 1x1 kernel's where it is held against one."""
    sides = (*shape, 1, 1) if len(shape) == 2 and len(like) == 4 else shape
    return f"({', '.join(map(_shown_length, sides))})"


def _shown_length(side: int | Multiple | None) -> str:
    if isinstance(side, Multiple):
        return f"a multiple of {side.of}"
    return "any" if side is None else str(side)


def _check_any_fits(
    network: Network, models: Mapping[str, nn.Module], wanted: Collection[Key], found: Collection[str]
) -> None:
    """Raises LoraError for a network of which a whole model, or all models together, have nothing."""
    for component in sorted({key.component for key in wanted} - set(found)):
        if component in models or not found:
            raise other_architecture(network, models, f"the model has none of its layers for {component}")


def _layer_names(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The paths of layers with a weight, by every flat name that a network may have for them."""
    paths = [path for path, module in modules.items() if _takes_network(module)]
    names = {flatten(original): path for original, path in original_names(paths)}
    return names | {flatten(path): path for path in paths}


def _takes_network(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)) or _is_peft(module)


def _has_fused_projections(attention: nn.Module | None) -> bool:
    """Whether diffusers calls one layer made of query, key and value instead of them."""
    return type(getattr(attention, "processor", None)).__name__.startswith("Fused")


def _is_peft(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.tuners.") and "base_layer" in module._modules
