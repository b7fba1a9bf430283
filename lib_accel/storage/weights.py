"""Which weights of a pipeline's models are stored, and how they come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from lib_accel.errors import OptionError
from lib_accel.lora.fusion import Fuser
from lib_accel.storage.formats import FORMATS, Format, StorageError
from lib_accel.storage.layer import StoredLayer
from lib_accel.storage.tensor import StoredWeight

_MODELS = ("unet", "controlnet", "text_encoder", "text_encoder_2")  # those of a list have a number besides

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Models = Sequence[tuple[str, nn.Module]]  # by the names of a pipeline's components


@dataclass(frozen=True)
class Stored:
    """What weights are stored now."""

    layers: int
    bytes: int  # of them where they are computed with
    loaded_bytes: int  # of what they were loaded as, which is in the CPU's memory now


class Storage:
    """The stored weights of one pipeline. Layers are held weakly, by their modules."""

    def __init__(self) -> None:
        self._layers: WeakKeyDictionary[nn.Module, StoredLayer] = WeakKeyDictionary()
        self._by_serial: WeakValueDictionary[int, StoredLayer] = WeakValueDictionary()
        self._by_original: WeakValueDictionary[int, StoredLayer] = WeakValueDictionary()

    def layer(self, module: nn.Module) -> StoredLayer | None:
        """What is stored of a module, if anything is."""
        return self._layers.get(module)

    def layer_of(self, weight: Tensor | None) -> StoredLayer | None:
        """The layer that a stored weight is the weight of, or that was loaded with this one."""
        if not isinstance(weight, StoredWeight):
            return self._by_original.get(id(weight))
        layer = self._by_serial.get(weight.serial)
        return layer if layer is not None and layer.now() is weight else None

    @property
    def layers(self) -> list[StoredLayer]:
        """All that is stored."""
        return list(self._layers.values())

    def store(self, models: Models, name: str | None, fuser: Fuser | None) -> Stored:
        """Stores the linear layers of `models` in the format of that name; None puts back what was loaded.

        fuser: of networks in the weights, which are taken out before and put in after, so that what is stored
        is the rounded sum. If it fails, all is as it was. Raises OptionError, StorageError, and LoraError if
        others changed weights that carry networks.
        """
        kind = _format(name)
        if kind is not None:
            _demand_weights(models)

        def change() -> None:
            self._change([] if kind is None else models, kind)

        change() if fuser is None else fuser.around(change)
        layers = self.layers
        loaded = sum(layer.original.nbytes for layer in layers)
        return Stored(len(layers), sum(layer.stored_bytes for layer in layers), loaded)

    def _change(self, models: Models, kind: Format | None) -> None:
        foreign = {module: layer for module, layer in self._layers.items() if layer.now() is None}
        for module in foreign:
            del self._layers[module]
        new: dict[nn.Module, StoredLayer] = {
            module: StoredLayer(module, path)
            for path, module in _linear(models)
            if module not in self._layers
        }
        self._all_become({**self._layers, **new}, kind)
        if kind is None:
            self._layers.clear()
        self._layers.update(new)
        self._by_serial.update({layer.serial: layer for layer in new.values()})
        self._by_original.update({id(layer.original): layer for layer in new.values()})
        if foreign:
            first = next(iter(foreign.values())).name
            raise StorageError(
                f"the weights of {len(foreign)} layers, first {first}, were replaced by others "
                "while they were stored; those are left as they are, all others are as asked for"
            )

    @staticmethod
    def _all_become(layers: Mapping[nn.Module, StoredLayer], kind: Format | None) -> None:
        before = [(layer, layer.kind) for layer in layers.values()]
        try:
            for layer, _ in before:
                layer.become(kind)
        except BaseException:
            for layer, was in before:
                layer.become(was)
            raise


def _format(name: str | None) -> Format | None:
    if name is None:
        return None
    if name not in FORMATS:
        raise OptionError(f"store_weights: got {name!r}, expected {', '.join(map(repr, FORMATS))} or None")
    return FORMATS[name]


def _stored_models(models: Models) -> Iterator[tuple[str, nn.Module]]:
    return ((name, model) for name, model in models if name.split(" ")[0] in _MODELS)


def _demand_weights(models: Models) -> None:
    """Raises StorageError where weights are elsewhere until their layer is called."""
    for name, model in _stored_models(models):
        if any(parameter.is_meta for parameter in model.parameters()):
            raise StorageError(
                f"store_weights: weights of {name} are on the meta device, as with sequential CPU offload; "
                "use pipe.enable_model_cpu_offload() instead"
            )


def _linear(models: Models) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers whose weight is theirs alone, without those of adapters; the name and the layer."""
    modules = {module for _, model in models for module in model.modules()}
    holders = Counter(id(each) for module in modules for each in module._parameters.values())
    for name, model in _stored_models(models):
        adapters = _inside(
            module for module in model.modules() if type(module).__module__.startswith("peft.")
        )
        for path, module in model.named_modules():
            if type(module) is not nn.Linear or module in adapters:
                continue
            weight = module._parameters["weight"]
            if type(weight) is nn.Parameter and weight.dtype in _DTYPES and holders[id(weight)] == 1:
                yield f"{name}.{path}", module


def _inside(modules: Iterable[nn.Module]) -> set[nn.Module]:
    return {inner for module in modules for inner in module.modules()}
