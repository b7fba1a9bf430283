"""Fuses networks into the weights of live models, in place, and takes them out again to the bit."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from lib_accel.lora.base import HeldWeight, Pair
from lib_accel.lora.formats import LoraError, Network
from lib_accel.lora.targets import LiveModels, Place, locate

Targets = dict[Place, tuple[Pair, ...]]  # what each weight is to carry; those not named carry nothing


class Wanted(NamedTuple):
    """A network, and how much of it text encoders and UNet get: 0 leaves them alone, less subtracts."""

    network: Network
    te_scale: float
    unet_scale: float


@dataclass(frozen=True)
class Fused:
    """What one call of `Fuser.fuse` did."""

    seconds: float
    layers: int  # weights that were written
    networks: tuple[str, ...]
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what fits no layer, by network


class Fuser:
    """Keeps the networks of some models: "unet", "text_encoder" and "text_encoder_2", each if it is there.

    Every weight is computed from its pristine bits, `base + sum(scale * change)`, in float32 and rounded
    once, so nothing drifts. The bases of all weights that were ever touched stay in the CPU's memory, in
    their own dtype, until `restore`. Models are held weakly; each may have one Fuser, used by one thread.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = weakref.WeakValueDictionary(models)
        self._held: dict[Place, HeldWeight] = {}

    @property
    def base_bytes(self) -> int:
        """Memory of the CPU that the pristine copies take."""
        return sum(held.base_bytes for held in self._held.values())

    def fuse(self, wanted: Sequence[Wanted]) -> Fused:
        """Makes `wanted`, in this order, the whole set. Writes the weights whose networks or scales changed.

        Raises LoraError before anything is written if a network does not fit, a scale is not finite or others
        changed a fused weight. If it fails later, as for lack of memory, the set before is put back.
        An empty set is taken in any case: weights that others changed are left as they are and forgotten,
        and LoraError says so at the end.
        """
        began = time.perf_counter()
        live = LiveModels(dict(self._models))
        targets, unknown = _plan(wanted, live)
        written = self._apply(targets, live)
        names = tuple(each.network.name for each in wanted)
        return Fused(time.perf_counter() - began, written, names, unknown)

    def restore(self) -> None:
        """As `fuse` of an empty set; then drops the bases too."""
        try:
            self._apply({}, LiveModels(dict(self._models)))
        except LoraError:
            self._held.clear()
            raise
        self._held.clear()

    def _apply(self, targets: Targets, live: LiveModels) -> int:
        """Has each weight carry its target and no other weight anything; how many were written."""
        foreign = self._forget_changed(live, tolerant=not targets)
        for place in targets:
            if place not in self._held:
                self._held[place] = HeldWeight(live.weight(place))
        wanted = [(held, targets.get(place, ())) for place, held in self._held.items()]
        changes = [(held, pairs) for held, pairs in wanted if not held.has(pairs)]
        _write(changes)
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


def _plan(wanted: Sequence[Wanted], live: LiveModels) -> tuple[Targets, dict[str, tuple[str, ...]]]:
    """What each weight is to carry, and by network the names of what fits no weight."""
    targets: Targets = {}
    unknown: dict[str, tuple[str, ...]] = {}
    for network, te_scale, unet_scale in wanted:
        if not (math.isfinite(te_scale) and math.isfinite(unet_scale)):
            raise LoraError(
                f"LoRA {network.name!r}: scales {te_scale}, {unet_scale}; expected finite numbers"
            )
        scales = {"text_encoder": te_scale, "text_encoder_2": te_scale, "unet": unet_scale}
        located = locate(network, live, {component for component, scale in scales.items() if scale})
        for place, layer in located.layers.items():
            targets[place] = (*targets.get(place, ()), Pair(layer, scales[place.component]))
        if located.unknown:
            unknown[network.name] = (*unknown.get(network.name, ()), *located.unknown)
    return targets, unknown


def _write(changes: Sequence[tuple[HeldWeight, tuple[Pair, ...]]]) -> None:
    """Writes all weights or, if one fails, none: those before it get back what they had."""
    before: list[tuple[HeldWeight, tuple[Pair, ...]]] = []
    try:
        for held, pairs in changes:
            before.append((held, held.pairs))
            held.write(pairs)
    except BaseException:
        for held, pairs in before:
            held.write(pairs)
        raise


def _changed_by_others(places: Sequence[Place], advice: str) -> LoraError:
    return LoraError(
        f"the weights of {len(places)} layers, first {'.'.join(places[0])}, were replaced or written to by "
        f"others while networks were fused into them; {advice}"
    )
