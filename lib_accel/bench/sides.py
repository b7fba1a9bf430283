"""Three ways to have a UNet carry networks: ours, peft's as its users call it, and layer by layer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lib_accel.bench.quiet import quiet
from lib_accel.bench.sizes import weights
from lib_accel.bench.wardrobe import Source, Wardrobe, Worn, names
from lib_accel.lora import fusion
from lib_accel.lora.formats import Network, read_network
from lib_accel.lora.fusion import Fuser, Wanted


class Parts:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds what the `with` block takes, less what parts inside it take, to a part."""
        inside, began = sum(self.seconds.values()), time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - began - (sum(self.seconds.values()) - inside)
            self.seconds[part] = self.seconds.get(part, 0.0) + taken

    def noting(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, whose time is added to a part."""

        def noted(*args: Any, **settings: Any) -> Any:
            with self.timed(part):
                return call(*args, **settings)

        return noted


class Side(Protocol):
    """One way; it is made with weights that carry nothing, and leaves them so."""

    def become(self, worn: Sequence[Worn]) -> dict[str, float]:
        """Has the weights carry just these networks; seconds by part."""

    def close(self) -> None:
        """Takes all off, and lets go of memory."""


class Ours:
    """`read_network` and `Fuser.fuse`, as in `handle.set_loras` with files that it has not kept."""

    def __init__(self, pipe: Any, wardrobe: Wardrobe) -> None:
        self._unet = pipe.unet
        self._fuser = Fuser({"unet": pipe.unet})
        self._read: dict[Source, Network] = {}

    def become(self, worn: Sequence[Worn]) -> dict[str, float]:
        """See Side."""
        parts = Parts()
        with parts.timed("load"):
            wanted = {each.source for each in worn}
            self._read = {source: kept for source, kept in self._read.items() if source in wanted}
            for source in wanted - self._read.keys():
                self._read[source] = read_network(source.given, source.name)
        carried = [Wanted(self._read[each.source], 1.0, each.scale) for each in worn]
        with _watched(parts), parts.timed("fuse"):
            self._fuser.fuse(carried)
        return parts.seconds

    def close(self) -> None:
        """See Side."""
        self._fuser.restore()
        self._read.clear()


# What the library's fusion does apart from writing weights, by the names that it has there.
_APART = (("LiveModels", "plan"), ("locate", "plan"), ("HeldWeight", "copy"))


@contextlib.contextmanager
def _watched(parts: Parts) -> Iterator[None]:
    """Inside the `with` block, what the library's fusion spends on planning and on copies is kept apart."""
    calls = {name: getattr(fusion, name) for name, _ in _APART}
    try:
        for name, part in _APART:
            setattr(fusion, name, parts.noting(part, calls[name]))
        yield
    finally:
        for name, call in calls.items():
            setattr(fusion, name, call)


class Peft:
    """The calls of diffusers' own guide to switching LoRAs; the adapters' weights are merged."""

    CALLS = (
        "pipe.unfuse_lora()",
        "pipe.unload_lora_weights(), or pipe.delete_adapters(names) where some are kept",
        "pipe.load_lora_weights(file, adapter_name=name) for each that is new",
        "pipe.set_adapters(names, scales)",
        "pipe.fuse_lora(adapter_names=names)",
    )

    def __init__(self, pipe: Any, wardrobe: Wardrobe) -> None:
        self._pipe = pipe
        self._worn: list[Worn] = []

    def become(self, worn: Sequence[Worn]) -> dict[str, float]:
        """See Side; a set that is there already is only activated once more."""
        parts = Parts()
        with quiet():
            if list(worn) == self._worn:
                with parts.timed("set"):
                    self._activate(worn)
            else:
                self._change(worn, parts)
        self._worn = list(worn)
        return parts.seconds

    def _change(self, worn: Sequence[Worn], parts: Parts) -> None:
        there, wanted = names(self._worn), names(worn)
        gone = [name for name in there if name not in wanted]
        if there:
            with parts.timed("unfuse"):
                self._pipe.unfuse_lora()
        if gone:
            with parts.timed("unload"):
                if len(gone) == len(there):
                    self._pipe.unload_lora_weights()
                else:
                    self._pipe.delete_adapters(gone)
        with parts.timed("load"):
            for each in worn:
                if each.source.name not in there:
                    given = each.source.given
                    loaded = dict(given) if isinstance(given, dict) else given
                    self._pipe.load_lora_weights(loaded, adapter_name=each.source.name)
        if worn:
            with parts.timed("set"):
                self._activate(worn)
            with parts.timed("fuse"):
                self._pipe.fuse_lora(adapter_names=wanted)

    def _activate(self, worn: Sequence[Worn]) -> None:
        if worn:
            self._pipe.set_adapters(names(worn), [each.scale for each in worn])

    def close(self) -> None:
        """See Side."""
        self.become([])


class ByLayer:
    """What a host does that merges each network on its own, as the webui does: see its network_apply_weights.

    For each layer: the weight back from its copy, and then for each network up @ down, times its strength,
    added to the weight. They are multiplied in float32, as in the webui on a CPU, but widened only there:
    at SDXL's size 16 networks would else take gigabytes.
    """

    def __init__(self, pipe: Any, wardrobe: Wardrobe) -> None:
        self._weights = weights(pipe.unet)
        self._stems = wardrobe.stems
        self._factors: dict[Source, dict[str, tuple[Tensor, Tensor, float]]] = {}
        self._bases: dict[str, Tensor] = {}
        self._carried: dict[str, tuple[Worn, ...]] = dict.fromkeys(self._weights, ())

    @torch.no_grad()
    def become(self, worn: Sequence[Worn]) -> dict[str, float]:
        """See Side; a layer that carries the set already is left alone."""
        parts = Parts()
        wanted = tuple(worn)
        with parts.timed("load"):
            sources = [each.source for each in worn]
            self._factors = {source: kept for source, kept in self._factors.items() if source in sources}
            for source in sources:
                if source not in self._factors:
                    self._factors[source] = self._load(source)
        with parts.timed("fuse"):
            for path, weight in self._weights.items():
                if wanted and path not in self._bases:
                    with parts.timed("copy"):
                        self._bases[path] = weight.clone()
                if self._carried[path] != wanted:
                    self._merge(path, weight, wanted)
        return parts.seconds

    def _load(self, source: Source) -> dict[str, tuple[Tensor, Tensor, float]]:
        found = source.tensors()
        factors = {}
        for stem, path in self._stems.items():
            if f"{stem}.lora_up.weight" in found:
                up, down = (found[f"{stem}.lora_{part}.weight"] for part in ("up", "down"))
                factors[path] = (up, down, found[f"{stem}.alpha"].item() / len(down))
        return factors

    def _merge(self, path: str, weight: Tensor, wanted: tuple[Worn, ...]) -> None:
        weight.copy_(self._bases[path])
        for each in wanted:
            factors = self._factors[each.source].get(path)
            if factors is not None:
                up, down, strength = factors
                updown = (up.float().flatten(1) @ down.float().flatten(1)) * (strength * each.scale)
                weight.copy_(weight + updown.reshape(weight.shape))
        self._carried[path] = wanted

    def close(self) -> None:
        """See Side."""
        self.become([])
        self._bases.clear()


OURS, PEFT, BY_LAYER = "ours", "peft", "by layer"
SIDES: dict[str, Callable[[Any, Wardrobe], Side]] = {OURS: Ours, BY_LAYER: ByLayer, PEFT: Peft}
