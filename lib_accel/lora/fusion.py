"""Fuses networks into the weights of live models, in place, and takes them out again to the bit."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.blocks.operators.operator import Tuned
from lib_accel.lora.base import HeldWeight, Pair
from lib_accel.lora.groups import PORTION, chosen_way, write_together
from lib_accel.lora.memory import Uploads, copier
from lib_accel.lora.network import LoraError, Network
from lib_accel.lora.targets import LiveModels, Place, locate

Targets = dict[Place, tuple[Pair, ...]]  # what each weight is to carry; those not named carry nothing

# How weights are found and held; the room storage has others.
Look = Callable[[Mapping[str, nn.Module]], LiveModels]
Hold = Callable[[nn.Parameter, Callable[[Tensor], Tensor], Uploads], HeldWeight]

# What was chosen for merges on a device; None for plain torch.
TunedOn = Callable[[torch.device], Tuned | None]

_Change = tuple[HeldWeight, tuple[Pair, ...]]  # a weight, and what it is to carry


class Wanted(NamedTuple):
    """A network, and how much of it text encoders and UNet get: 0 leaves them alone, less subtracts."""

    network: Network
    te_scale: float
    unet_scale: float
    dyn_dim: int | None = None  # only the first so many ranks of its LoRA layers, at the strength of all


@dataclass(frozen=True)
class Fused:
    """What one call of `Fuser.fuse` did."""

    seconds: float
    layers: int  # weights and biases that were written
    networks: tuple[str, ...]
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what fits no layer, by network


class Fuser:
    """Keeps the networks of some models: "unet", "text_encoder" and "text_encoder_2", each if it is there.

    Every weight is computed from its pristine bits in float32, the networks' changes in their order, and
    rounded once, so nothing drifts. The bases of all weights that were ever touched stay, in their own dtype,
    until `restore`: on the GPU where that leaves it enough memory, else in the CPU's. So do up to 512 MiB of
    the networks' tensors on the GPU. Models are held weakly; each may have one Fuser. Several threads may
    call it; each call then is whole before the next begins.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        look: Look | None = None,
        hold: Hold | None = None,
        tuned: TunedOn = lambda device: None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """`tuned`: what is chosen on a device; weights that only LoRAs change are written by that.

        What was chosen otherwise since is taken by the next `fuse`, also for weights that carry the same.
        lock: held while weights are written, reentrant; who moves them in memory holds it too.
        """
        self._models = weakref.WeakValueDictionary(models)
        self._look, self._hold_one, self._tuned = look, hold, tuned
        self._chosen: dict[torch.device, Tuned | None] = {}  # during one `_apply`: to ask takes long
        self._weights = lock or nullcontext()
        self._held: dict[Place, HeldWeight] = {}
        self._uploads = Uploads()
        self._live: LiveModels | None = None
        self._lock = threading.RLock()

    @property
    def base_bytes(self) -> int:
        """Memory that the pristine copies take."""
        return sum(held.base_bytes for held in self._held.values())

    def carries(self, components: Collection[str]) -> bool:
        """Whether a weight of these models carries a network."""
        return any(held.pairs and place.component in components for place, held in self._held.items())

    def check(self, wanted: Sequence[Wanted]) -> None:
        """Raises what `fuse` would say of these networks; it need then not look for their places again."""
        with self._lock:
            _plan(wanted, self._live_now())

    def fuse(self, wanted: Sequence[Wanted], components: Collection[str] | None = None) -> Fused:
        """Makes `wanted`, in this order, the whole set. Writes the weights whose networks or scales changed.

        components: the models whose weights are to be written, by default all; others carry what they did.

        Raises LoraError before anything is written if a network does not fit, a scale is not finite or others
        changed a fused weight. If it fails later, as for lack of memory, the set before is put back.
        An empty set is taken in any case: weights that others changed are left as they are and forgotten,
        and LoraError says so at the end.
        """
        began = time.perf_counter()
        with self._lock:
            live = self._live_now()
            targets, unknown = _plan(wanted, live)
            if components is not None:
                targets = self._of_others(components) | {
                    place: pairs for place, pairs in targets.items() if place.component in components
                }
            with self._weights:
                written = self._apply(targets, live)
        names = tuple(each.network.name for each in wanted)
        return Fused(time.perf_counter() - began, written, names, unknown)

    def _of_others(self, components: Collection[str]) -> Targets:
        """What the weights of other models than these carry."""
        return {
            place: held.pairs
            for place, held in self._held.items()
            if held.pairs and place.component not in components
        }

    def restore(self) -> None:
        """As `fuse` of an empty set; then drops the bases too."""
        with self._lock, self._weights:
            try:
                self._apply({}, self._live_now())
            finally:
                self._held.clear()
                self._uploads.clear()

    def around(self, change: Callable[[], None]) -> None:
        """Has `change` done to weights that carry no network; those that do now carry the same after it.

        Raises LoraError as `fuse` of an empty set, before the change.
        """
        with self._lock, self._weights:
            self._forget_changed(self._live_now(), tolerant=False)
            targets = {place: held.pairs for place, held in self._held.items() if held.pairs}
            self.restore()
            try:
                change()
            finally:
                self._apply(targets, self._live_now())

    def _live_now(self) -> LiveModels:
        models = dict(self._models)
        if self._live is None or not self._live.is_current(models):
            self._live = (self._look or LiveModels)(models)
        return self._live

    def _apply(self, targets: Targets, live: LiveModels) -> int:
        """Has each weight carry its target and no other weight anything; how many were written."""
        self._chosen.clear()
        foreign = self._forget_changed(live, tolerant=not targets)
        self._forget_bases(targets)
        self._hold({place: live.weight(place) for place in targets})
        wanted = [(held, targets.get(place, ())) for place, held in self._held.items()]
        changes = [each for each in wanted if not each[0].has(each[1]) or self._is_outdated(each[0])]
        self._write(changes)
        if foreign:
            raise _changed_by_others(foreign, "they are left as they are; load the model again if in doubt")
        return len(changes)

    def _forget_changed(self, live: LiveModels, *, tolerant: bool) -> list[Place]:
        """Lets go of weights that others changed. Returns the fused ones or, unless `tolerant`, raises."""
        changed = [place for place, held in self._held.items() if not held.is_current(live.weight_now(place))]
        foreign = [place for place in changed if self._held[place].pairs and place.component in live.models]
        if foreign and not tolerant:
            advice = "set no networks, which leaves those weights as they are, or load the model again"
            raise _changed_by_others(foreign, advice)
        for place in changed:
            del self._held[place]
        return foreign

    def _forget_bases(self, places: Collection[Place]) -> None:
        """Lets go of bases that are none any more: while nothing is fused, a weight is its owner's.

        Looked at bit by bit before networks are fused anew, since `weight.data` is written to uncounted.
        """
        for place in places:
            held = self._held.get(place)
            if held is not None and not held.pairs and not held.is_pristine():
                del self._held[place]

    def _hold(self, weights: Mapping[Place, nn.Parameter]) -> None:
        """Copies the pristine bits of those weights that are not held."""
        by_device: dict[torch.device, dict[Place, nn.Parameter]] = {}
        for place, weight in weights.items():
            if place not in self._held:
                by_device.setdefault(weight.device, {})[place] = weight
        for device, new in by_device.items():
            copy = copier(device, sum(weight.numel() * weight.element_size() for weight in new.values()))
            for place, weight in new.items():
                self._held[place] = (self._hold_one or HeldWeight)(weight, copy, self._uploads)

    def _is_outdated(self, held: HeldWeight) -> bool:
        """Whether what it carries would be written by something else now: bits follow from choices alone."""
        tuned = self._tuned_for(held, held.pairs)
        if tuned is None:
            return held.way is not None
        if held.tuned is tuned:
            return False
        held.tuned = tuned
        return chosen_way(held.merge(held.pairs), tuned) != held.way

    def _tuned_for(self, held: HeldWeight, pairs: Sequence[Pair]) -> Tuned | None:
        device = held.device_to_join(pairs)
        if device is not None and device not in self._chosen:
            self._chosen[device] = self._tuned(device)
        return None if device is None else self._chosen[device]

    def _write(self, changes: Sequence[_Change]) -> None:
        """Writes all weights or, if one fails, none: those before it get back what they had."""
        before: list[_Change] = []
        try:
            for tuned, portion in self._portions(changes):
                before += [(held, held.pairs) for held, _ in portion]
                _write_portion(portion, tuned)
        except BaseException:
            self._put_back(before)
            raise

    def _put_back(self, before: Sequence[_Change]) -> None:
        """The set before or, if that cannot be computed either, no set at all: never a part of one."""
        try:
            for tuned, portion in self._portions(before):
                _write_portion(portion, tuned)
        except BaseException:
            for held in self._held.values():
                held.write(())
            raise

    def _portions(self, changes: Sequence[_Change]) -> Iterator[tuple[Tuned | None, Sequence[_Change]]]:
        """All changes: those that may be written together so far as memory allows, the others one by one."""
        waiting: dict[Tuned, list[_Change]] = {}
        size = 0
        for held, pairs in changes:
            tuned = self._tuned_for(held, pairs)
            if tuned is None:
                yield None, [(held, pairs)]
                continue
            waiting.setdefault(tuned, []).append((held, pairs))
            size += sum(pair.layer.size_bytes for pair in pairs)
            if size > PORTION:
                yield from waiting.items()
                waiting, size = {}, 0
        yield from waiting.items()


def _write_portion(portion: Sequence[_Change], tuned: Tuned | None) -> None:
    if tuned is None:
        for held, pairs in portion:
            held.write(pairs)
        return
    ways = write_together([held.merge(pairs) for held, pairs in portion], tuned)
    for (held, pairs), way in zip(portion, ways, strict=True):
        held.note(pairs, way, tuned)


def _plan(wanted: Sequence[Wanted], live: LiveModels) -> tuple[Targets, dict[str, tuple[str, ...]]]:
    """What each weight is to carry, and by network the names of what fits no weight."""
    pairs: dict[Place, list[Pair]] = {}
    unknown: dict[str, tuple[str, ...]] = {}
    for each in wanted:
        _check_numbers(each)
        network, te_scale, unet_scale, dyn_dim = each
        scales = {"text_encoder": te_scale, "text_encoder_2": te_scale, "unet": unet_scale}
        located = locate(network, live, [component for component, scale in scales.items() if scale])
        for place, layer in located.layers.items():
            pairs.setdefault(place, []).append(Pair(layer, scales[place.component], dyn_dim))
        if located.unknown:
            unknown[network.name] = (*unknown.get(network.name, ()), *located.unknown)
    return {place: tuple(of_place) for place, of_place in pairs.items()}, unknown


def _check_numbers(wanted: Wanted) -> None:
    network, te_scale, unet_scale, dyn_dim = wanted
    if not (math.isfinite(te_scale) and math.isfinite(unet_scale)):
        raise LoraError(f"LoRA {network.name!r}: scales {te_scale}, {unet_scale}; expected finite numbers")
    if dyn_dim is not None and (not isinstance(dyn_dim, int) or dyn_dim < 1):
        raise LoraError(
            f"LoRA {network.name!r}: dyn_dim {dyn_dim!r}; expected a number of ranks from 1, or None"
        )


def _changed_by_others(places: Sequence[Place], advice: str) -> LoraError:
    return LoraError(
        f"the weights of {len(places)} layers, first {places[0].name}, were replaced or written to by "
        f"others while networks were fused into them; {advice}"
    )
