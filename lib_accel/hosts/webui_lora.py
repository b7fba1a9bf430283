"""The webui's Lora extension: its networks merged into layers, all those of a layer in one go.

What it left off, it can take up at any time: its marks and its backups are kept as it keeps them. Facts about
it that this file relies on are those of extensions-builtin/Lora/, the file of which is named.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lib_accel.blocks.operators.operator import Tuned
from lib_accel.device import autocast_off
from lib_accel.hosts.webui_lora_kinds import KINDS, Kind
from lib_accel.layouts.reading import class_name
from lib_accel.lora.accumulate import write_sum
from lib_accel.lora.groups import PORTION, Merge, chosen_way, write_together
from lib_accel.lora.layers import is_finite
from lib_accel.lora.memory import to_pinned
from lib_accel.lora.terms import Factors, Term

MARK = "network_current_names"  # on a layer: what it carries (networks.py)

# Subclasses whose own forward leaves out the one that the Lora extension patches: it never gets to see them.
_NEVER_SEEN = ("open_clip.transformer.LayerNorm", "open_clip.transformer.LayerNormFp32")

_PLAIN = (nn.Linear, nn.Conv2d)

_BY_OTHERS = "others"  # the way of what was merged before we met the layer: it stays until networks change


class _Carried(NamedTuple):
    """What a layer carries, and the mark that it had when that was last seen to."""

    mark: Hashable
    target: tuple[Hashable, ...]
    way: str | None = None  # what wrote it: None for plain torch, or for what the extension wrote for us
    tuned: Tuned | None = None  # what had chosen that


class _Waiting(NamedTuple):
    """A layer that is to be written together with others, and what it carries then."""

    layer: Any
    terms: list[Term]
    carried: _Carried

    @property
    def size_bytes(self) -> int:
        factors = [each for term in self.terms for each in term if isinstance(each, Tensor)]
        return sum(factor.numel() * factor.element_size() for factor in factors)

    def merge(self) -> Merge:
        return Merge(self.layer.weight, self.layer.network_weights_backup, self.terms)


class Merger:
    """Merges networks into layers and remembers what each layer carries."""

    def __init__(self) -> None:
        self._carried: WeakKeyDictionary[nn.Module, _Carried] = WeakKeyDictionary()
        self._is_finite: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def merge(
        self, layers: Sequence[nn.Module], networks: Any, *, exact: bool, tuned: Tuned | None = None
    ) -> None:
        """Makes these layers carry `networks.loaded_networks`; writes those only for which that is a change.

        networks: the extension's module of that name. exact: by its own function, which rounds after each
        network; otherwise a layer that only LoRA, LoHa and LoKr mean is written once, in float32, whatever
        their number. Networks of these kinds that hold NaN are left out and named as the extension names
        networks with errors.

        tuned: what was chosen for merges; layers that only LoRAs mean are written by that, those of one shape
        at once, and again where it is another than before. If that fails they are restored and forgotten.
        """
        wanted = wanted_marks(networks)
        waiting: list[_Waiting] = []
        size = 0
        for layer in layers:
            if class_name(type(layer)) in _NEVER_SEEN:
                continue
            if isinstance(layer, nn.MultiheadAttention):
                self._merge_attention(layer, networks, wanted)
            elif exact:
                self._merge_exactly(layer, networks, wanted)
            elif (one := self._merge(layer, networks, wanted, tuned)) is not None:
                waiting.append(one)
                size += one.size_bytes
                if size > PORTION:
                    self._write_together(waiting, networks, tuned)
                    waiting, size = [], 0
        self._write_together(waiting, networks, tuned)

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

    def _merge(
        self, layer: Any, networks: Any, wanted: tuple[Hashable, ...], tuned: Tuned | None
    ) -> _Waiting | None:
        """Merges networks into a layer, or returns it for `_write_together`."""
        name = getattr(layer, "network_layer_name", None)
        if name is None:
            return None
        found = [net.modules[name] for net in networks.loaded_networks if name in net.modules]
        target = tuple(_strength_and_file(module) for module in found)
        # What carries nothing is marked so: the extension then makes no backup before it has to.
        now = _Carried(wanted if found else (), target, tuned=tuned)
        mark, before = getattr(layer, MARK, ()), self._carried.get(layer)
        is_right = self._target_of(layer, mark, wanted, target) == target
        is_outdated = False
        if is_right and before is not None and before.mark == mark:
            now = now._replace(way=before.way)
            is_outdated = bool(found) and before.tuned is not tuned and before.way != _BY_OTHERS
        elif is_right and found:
            now = now._replace(way=_BY_OTHERS)
        if not is_right or is_outdated:
            terms = self._terms(layer, networks, found) if found else None
            if not is_right or now.way != _way(layer, terms, tuned):
                if terms and tuned is not None and _may_wait(layer, terms):
                    return _Waiting(layer, terms, now)
                self._write(layer, networks, found, terms)
                now = now._replace(way=None)
        self._note(layer, now)
        return None

    def _note(self, layer: Any, carried: _Carried) -> None:
        if getattr(layer, MARK, ()) != carried.mark:
            setattr(layer, MARK, carried.mark)
        self._carried[layer] = carried

    def _target_of(self, layer: Any, mark: Any, wanted: Any, target: Any) -> Any:
        """What the layer carries; where others saw to it since, what its mark says; None if unknown."""
        carried = self._carried.get(layer)
        if carried is not None and carried.mark == mark:
            return carried.target
        if mark == wanted:
            return target
        return None if mark else ()

    def _write(self, layer: Any, networks: Any, found: Sequence[Any], terms: Sequence[Term] | None) -> None:
        if not found:
            _restore(layer, networks)
        elif terms is None or _lacks_backup(layer):  # it says what is wrong then
            _restore(layer, networks)  # or it would take equal names for equal networks
            self._merge_by_extension(layer, networks)
        else:
            self._write_terms(layer, networks, terms)

    def _write_together(self, waiting: Sequence[_Waiting], networks: Any, tuned: Tuned | None) -> None:
        if not waiting or tuned is None:
            return
        try:
            for each in waiting:
                self._back_up(each.layer, networks)
            ways = write_together([each.merge() for each in waiting], tuned)
        except BaseException:
            for each in waiting:
                self._carried.pop(each.layer, None)
                _restore(each.layer, networks)
            raise
        for each, way in zip(waiting, ways, strict=True):
            self._note(each.layer, each.carried._replace(way=way))

    def _back_up(self, layer: Any, networks: Any) -> None:
        """Sees that there are backups, and that the bias is as in them."""
        if getattr(layer, "network_weights_backup", None) is None:
            backups = (_copied(layer.weight), None if layer.bias is None else _copied(layer.bias))
            layer.network_weights_backup, layer.network_bias_backup = backups
        else:  # a network of another kind may have changed the bias
            with torch.no_grad():
                networks.restore_weights_backup(layer, "bias", layer.network_bias_backup)

    def _write_terms(self, layer: Any, networks: Any, terms: Sequence[Term]) -> None:
        self._back_up(layer, networks)
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
        kinds = [KINDS.get(class_name(type(module))) for module in found]
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

    def _finite(self, module: Any, kind: Kind) -> bool:
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


def _lacks_backup(layer: Any) -> bool:
    """Whether a layer carries networks and nobody has what it was before."""
    return getattr(layer, "network_weights_backup", None) is None and bool(getattr(layer, MARK, ()))


def _may_wait(layer: Any, terms: Sequence[Term]) -> bool:
    """Whether a layer may be written together with others: all that it gets is small factors."""
    return all(isinstance(term, Factors) for term in terms) and not _lacks_backup(layer)


def _way(layer: Any, terms: Sequence[Term] | None, tuned: Tuned | None) -> str | None:
    """What would write a layer that has backups; None for plain torch or the extension."""
    if tuned is None or not terms or not _may_wait(layer, terms):
        return None
    return chosen_way(Merge(layer.weight, layer.network_weights_backup, terms), tuned)


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
