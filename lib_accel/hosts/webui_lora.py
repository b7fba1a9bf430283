"""The webui's Lora extension: its networks merged into layers, all those of a layer in one go.

What it left off, it can take up at any time: its marks and its backups are kept as it keeps them. Facts about
it that this file relies on are those of extensions-builtin/Lora/, the file of which is named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lib_accel.device import autocast_off
from lib_accel.layouts.reading import class_name
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.delta import cp_product, for_inpainting, loha, lokr, needs_inpainting, tucker_down
from lib_accel.lora.layers import is_finite
from lib_accel.lora.memory import to_pinned
from lib_accel.lora.terms import Dense, Factors, Term

MARK = "network_current_names"  # on a layer: what it carries (networks.py)

# Subclasses whose own forward leaves out the one that the Lora extension patches: it never gets to see them.
_NEVER_SEEN = ("open_clip.transformer.LayerNorm", "open_clip.transformer.LayerNormFp32")

_PLAIN = (nn.Linear, nn.Conv2d)


class _Carried(NamedTuple):
    """What a layer carries, and the mark that it had when that was last seen to."""

    mark: Hashable
    target: tuple[Hashable, ...]


class Merger:
    """Merges networks into layers and remembers what each layer carries."""

    def __init__(self) -> None:
        self._carried: WeakKeyDictionary[nn.Module, _Carried] = WeakKeyDictionary()
        self._is_finite: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def merge(self, layers: Sequence[nn.Module], networks: Any, *, exact: bool) -> None:
        """Makes these layers carry `networks.loaded_networks`; writes those only for which that is a change.

        networks: the extension's module of that name. exact: by its own function, which rounds after each
        network; otherwise a layer that only LoRA, LoHa and LoKr mean is written once, in float32, whatever
        their number. Networks of these kinds that hold NaN are left out and named as the extension names
        networks with errors.
        """
        wanted = wanted_marks(networks)
        for layer in layers:
            if class_name(type(layer)) in _NEVER_SEEN:
                continue
            if isinstance(layer, nn.MultiheadAttention):
                self._merge_attention(layer, networks, wanted)
            elif exact:
                self._merge_exactly(layer, networks, wanted)
            else:
                self._merge(layer, networks, wanted)

    def give_back(self, networks: Any) -> None:
        """Takes our merges out again, so that the extension makes its own when a layer is next called."""
        for layer, carried in list(self._carried.items()):
            if carried.target and carried.mark == getattr(layer, MARK, ()):
                _restore(layer, networks)
        self._carried.clear()

    def _merge_exactly(self, layer: Any, networks: Any, wanted: tuple[Hashable, ...]) -> None:
        carried = self._carried.pop(layer, None)
        if carried is not None and carried.target and carried.mark == wanted == getattr(layer, MARK, ()):
            _restore(layer, networks)  # or the extension would take what we wrote for what it would write
        self._merge_by_extension(layer, networks)

    def _merge_attention(self, layer: Any, networks: Any, wanted: tuple[Hashable, ...]) -> None:
        """By the extension, which knows how its four weights are spelled."""
        target = wanted_networks(networks)
        carried = self._carried.get(layer)
        if carried is not None and carried.target != target and carried.mark == wanted:
            _restore(layer, networks)  # or it would take equal names for equal files
        self._merge_by_extension(layer, networks)
        self._carried[layer] = _Carried(getattr(layer, MARK, ()), target)

    def _merge_by_extension(self, layer: Any, networks: Any) -> None:
        try:
            networks.network_apply_weights(layer)
        except BaseException:  # it leaves what it had done so far
            self._carried.pop(layer, None)
            _restore(layer, networks)
            raise

    def _merge(self, layer: Any, networks: Any, wanted: tuple[Hashable, ...]) -> None:
        name = getattr(layer, "network_layer_name", None)
        if name is None:
            return
        found = [net.modules[name] for net in networks.loaded_networks if name in net.modules]
        target = tuple(_strength_and_file(module) for module in found)
        mark = getattr(layer, MARK, ())
        if self._target_of(layer, mark, wanted, target) != target:
            self._write(layer, networks, found)
        # What carries nothing is marked so: the extension then makes no backup before it has to.
        now = wanted if found else ()
        if getattr(layer, MARK, ()) != now:
            setattr(layer, MARK, now)
        self._carried[layer] = _Carried(now, target)

    def _target_of(self, layer: Any, mark: Any, wanted: Any, target: Any) -> Any:
        """What the layer carries; where others saw to it since, what its mark says; None if unknown."""
        carried = self._carried.get(layer)
        if carried is not None and carried.mark == mark:
            return carried.target
        if mark == wanted:
            return target
        return None if mark else ()

    def _write(self, layer: Any, networks: Any, found: Sequence[Any]) -> None:
        terms = self._terms(layer, networks, found) if found else None
        backup = getattr(layer, "network_weights_backup", None)
        is_marked = bool(getattr(layer, MARK, ()))
        if not found:
            _restore(layer, networks)
        elif terms is None or (backup is None and is_marked):  # it says what is wrong then
            _restore(layer, networks)  # or it would take equal names for equal networks
            self._merge_by_extension(layer, networks)
        else:
            self._write_terms(layer, networks, terms)

    def _write_terms(self, layer: Any, networks: Any, terms: Sequence[Term]) -> None:
        if getattr(layer, "network_weights_backup", None) is None:
            backups = (_copied(layer.weight), None if layer.bias is None else _copied(layer.bias))
            layer.network_weights_backup, layer.network_bias_backup = backups
        else:  # a network of another kind may have changed the bias
            with torch.no_grad():
                networks.restore_weights_backup(layer, "bias", layer.network_bias_backup)
        try:
            write_sum(layer.weight, layer.network_weights_backup, terms)
        except BaseException:  # no memory, say: what is there is neither the old nor the new
            self._carried.pop(layer, None)
            _restore(layer, networks)
            raise

    def _terms(self, layer: Any, networks: Any, found: Sequence[Any]) -> list[Term] | None:
        """The changes of a layer, or None if they are the extension's to compute."""
        if type(layer) not in _PLAIN or getattr(layer, "fp16_weight", None) is not None:
            return None
        kinds = [_KINDS.get(class_name(type(module))) for module in found]
        if None in kinds or any(module.bias is not None or module.dora_scale is not None for module in found):
            return None
        terms = []
        for module, kind in zip(found, kinds, strict=True):
            assert kind is not None
            if not self._finite(module, kind):
                _count_error(networks, module.network.name)
                continue
            try:
                with autocast_off(layer.weight.device.type):
                    terms.append(kind.term(module, layer.weight))
            except (RuntimeError, TypeError, IndexError):  # shapes that do not fit: its to tell the user
                return None
        return terms

    def _finite(self, module: Any, kind: _Kind) -> bool:
        if module not in self._is_finite:
            self._is_finite[module] = all(map(is_finite, kind.tensors(module)))
        return self._is_finite[module]


def wanted_marks(networks: Any) -> tuple[Hashable, ...]:
    """What the extension compares a layer's mark with, and leaves as its mark."""
    return tuple(
        (each.name, each.te_multiplier, each.unet_multiplier, each.dyn_dim)
        for each in networks.loaded_networks
    )


def wanted_networks(networks: Any) -> tuple[Hashable, ...]:
    """For each network its mark and, which that lacks, when its file was written."""
    files = [getattr(each, "mtime", None) for each in networks.loaded_networks]
    return tuple(zip(wanted_marks(networks), files, strict=True))


def find_network(name: str) -> str | None:
    """The path of a network's file by the name that a prompt has for it; None if the extension has none."""
    networks = sys.modules.get("networks")
    known = getattr(networks, "available_network_aliases", {}).get(name)
    return None if known is None else str(known.filename)


def _strength_and_file(module: Any) -> Hashable:
    network = module.network
    return network.name, getattr(network, "mtime", None), module.multiplier(), network.dyn_dim


def _restore(layer: Any, networks: Any) -> None:
    """Makes a layer pristine, with the mark that says so; one without backups stays as it is."""
    backups = [getattr(layer, f"network_{name}_backup", None) for name in ("weights", "bias")]
    if any(backup is not None for backup in backups):
        with torch.no_grad():
            networks.network_restore_weights_from_backup(layer)
        setattr(layer, MARK, ())


def _copied(weight: Tensor) -> Tensor:
    """A backup as the extension makes it; pinned for a GPU, so that it comes back at full speed."""
    return to_pinned(weight.detach()) if weight.is_cuda else weight.detach().to("cpu", copy=True)


def _count_error(networks: Any, name: str) -> None:
    errors = networks.extra_network_lora.errors  # told under the picture (extra_networks_lora.py)
    errors[name] = errors.get(name, 0) + 1


# The kinds of network_lora.py, network_hada.py and network_lokr.py.


class _Kind(NamedTuple):
    tensors: Callable[[Any], list[Tensor]]
    term: Callable[[Any, Tensor], Term]  # of the module and the weight that it changes


def _strength(module: Any) -> float:
    return float(module.calc_scale() * module.multiplier())


def _lora_tensors(module: Any) -> list[Tensor]:
    parts = (module.up_model, module.down_model, module.mid_model)
    return [part.weight for part in parts if part is not None]


def _lora(module: Any, weight: Tensor) -> Term:
    up, down, *mid = (tensor.to(weight.device) for tensor in _lora_tensors(module))
    dimensions = module.network.dyn_dim
    if mid:
        down = tucker_down(mid[0], down)
    elif dimensions is not None:
        up, down = up[:, :dimensions], down[:dimensions]
    if down.ndim == 4 and needs_inpainting((len(up), *down.shape[1:]), weight.shape):
        down = for_inpainting(down)
    up, down = up.flatten(1), down.flatten(1)
    if (len(up), len(up) * down.shape[1]) != (len(weight), weight.numel()):
        raise RuntimeError("the factors are for another weight")
    return Factors(up, down, _strength(module))


_LOHA = ("w1a", "w1b", "w2a", "w2b", "t1", "t2")
_LOKR = ("w1", "w1a", "w1b", "w2", "w2a", "w2b", "t2")


def _tensors(names: Sequence[str], module: Any) -> list[Tensor]:
    return [getattr(module, name) for name in names if getattr(module, name) is not None]


def _on(device: torch.device, names: Sequence[str], module: Any) -> list[Tensor | None]:
    values = [getattr(module, name) for name in names]
    return [None if value is None else value.to(device) for value in values]


def _loha(module: Any, weight: Tensor) -> Term:
    w1a, w1b, w2a, w2b, t1, t2 = _on(weight.device, _LOHA, module)
    assert w1a is not None
    assert w1b is not None
    assert w2a is not None
    assert w2b is not None
    return Dense(loha(w1a, w1b, w2a, w2b, t1, t2).reshape(weight.shape), _strength(module))


def _lokr(module: Any, weight: Tensor) -> Term:
    w1, w1a, w1b, w2, w2a, w2b, t2 = _on(weight.device, _LOKR, module)
    left = _product(w1, w1a, w1b, None)
    return Dense(lokr(left, _product(w2, w2a, w2b, t2)).reshape(weight.shape), _strength(module))


def _product(whole: Tensor | None, a: Tensor | None, b: Tensor | None, mid: Tensor | None) -> Tensor:
    """A factor of LoKr, which is there as it is or as a product of two, or of three."""
    if whole is not None:
        return whole
    assert a is not None
    assert b is not None
    return a.float() @ b.float() if mid is None else cp_product(mid, a, b)


_KINDS: Mapping[str, _Kind] = {
    "network_lora.NetworkModuleLora": _Kind(_lora_tensors, _lora),
    "network_hada.NetworkModuleHada": _Kind(partial(_tensors, _LOHA), _loha),
    "network_lokr.NetworkModuleLokr": _Kind(partial(_tensors, _LOKR), _lokr),
}
