"""The engine: stands between a host's blocks and their classes' own code, and steps aside in time."""

from __future__ import annotations

import functools
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lib_accel import __version__
from lib_accel.audit import ClassWatch
from lib_accel.bound import BoundContainer, BoundUNet, HostFailure, ModelCall, new_call
from lib_accel.host import Host
from lib_accel.layouts import FAMILIES
from lib_accel.layouts.compvis import Family
from lib_accel.layouts.reading import class_name, is_original
from lib_accel.patching import ClassPatch, Method
from lib_accel.report import Generation, ModelReport, Report, Tally

_log = logging.getLogger(__name__)


# What may fail without saying anything of the block: the next call may fit.
_PASSING_FAILURES = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))

_SWITCHED_OFF = "switched off"


class Engine:
    """Accelerates every UNet and control model of the process while it is attached.

    Models are met at their calls and known by weak references only: refiners, control models and models of
    other extensions need no registration, and a model that the host drops is freed.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._patches: dict[type, ClassPatch] = {}
        self._families: dict[type, Family] = {}  # of the classes that are patched
        self._containers: WeakKeyDictionary[nn.Module, BoundContainer] = WeakKeyDictionary()
        self._unets: WeakKeyDictionary[nn.Module, BoundUNet] = WeakKeyDictionary()
        self._broken: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._is_attached = False
        self._watch = ClassWatch()
        self._thread = _Thread()
        self._logged: set[str] = set()
        self.generation = Generation()

    def attach(self) -> None:
        """Patches the classes of every imported family, and forgets earlier failures; harmless to repeat."""
        for names in FAMILIES:
            for path, make in ((names.container, self._for_containers), (names.unet, self._for_unets)):
                home, _, name = path.rpartition(".")
                owner = getattr(sys.modules.get(home), name, None)
                if owner is None:
                    continue
                if owner not in self._patches:
                    self._patches[owner] = ClassPatch(owner, "forward", make)
                    self._families[owner] = names
                self._patches[owner].apply()
        self._broken.clear()
        self._is_attached = True

    def detach(self) -> None:
        """Puts every class back as it was; what others captured of ours goes on as the original."""
        self._is_attached = False
        for patch in self._patches.values():
            patch.undo()
        self._forget()

    def bind(self, model: nn.Module) -> None:
        """Binds a model's containers ahead of its first call, so that the report can speak of them.

        Forgets what was bound before: a patch on a block may hold the whole model, and we hold the block.
        """
        self._forget()
        for container, names in self._containers_of(model):
            self._bound_container(container, names)

    def _forget(self) -> None:
        self._containers.clear()
        self._unets.clear()

    def begin_generation(self) -> None:
        """Starts the counters of the report anew."""
        self.generation = Generation(networks=self.generation.networks)

    def report(self) -> Report:
        """What runs how, and why. May be asked from any thread."""
        self._watch.look()
        attention_reason = "; ".join(self._host.attention_reasons()) or None
        models = []
        for name, model in self._host.models():
            tally = Tally()
            for container, names in self._containers_of(model):
                if (failure := self._broken.get(container)) is not None:
                    tally.add([failure])
                else:
                    self._bound_container(container, names).count(tally, attention_reason)
            family = self._families.get(type(model))
            if family is not None:
                tally.add(self._reasons_of_unet(model, family))
            models.append(ModelReport(name, tally))
        enabled = self._is_attached and self._host.options().enabled
        return Report(__version__, enabled, self._stand_aside_reasons(), models, self.generation)

    # Dispatch

    def _for_containers(self, original: Method) -> Method:
        @functools.wraps(original)
        def forward(container: Any, x: Any, emb: Any, context: Any = None, *args: Any, **kwargs: Any) -> Any:
            failure: Exception | None = None
            if self._is_attached and not args and not kwargs and isinstance(x, Tensor):
                try:
                    result = self._run_container(container, x, emb, context)
                    if result is not None:
                        return result
                except Exception as error:
                    failure = error
            result = original(container, x, emb, context, *args, **kwargs)
            if failure is not None:  # the host's own code could do it, so the fault is ours
                self._note_failure(container, failure)
            return result

        return forward

    def _for_unets(self, original: Method) -> Method:
        @functools.wraps(original)
        def forward(
            unet: Any, x: Any, timesteps: Any = None, context: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            failure: Exception | None = None
            host_failure: Exception | None = None
            if self._is_attached and isinstance(x, Tensor) and _only_vector(args, kwargs):
                try:
                    result = self._run_unet(unet, x, timesteps, context, *args, **kwargs)
                    if result is not None:
                        return result
                except HostFailure as error:
                    host_failure = error.cause
                except Exception as error:
                    failure = error
            if host_failure is not None:  # raised out here, where nothing is chained to it
                raise host_failure
            result = original(unet, x, timesteps, context, *args, **kwargs)
            if failure is not None:
                self._note_failure(unet, failure)
            return result

        return forward

    def _run_container(self, container: nn.Module, x: Tensor, emb: Any, context: Any) -> Tensor | None:
        """The container's output, or None if it is the host's to compute."""
        call = self._call_of(x, emb)
        names = self._families.get(type(container))
        if names is None or _SWITCHED_OFF in call.stand_aside:
            return None
        bound = self._bound_container(container, names)
        reasons = [*call.stand_aside]
        if (failure := self._broken.get(container, bound.failure)) is not None:
            reasons.append(failure)
        if reasons:
            bound.count_as_host(self.generation, reasons)
            return None
        bound.networks.ensure(self._host, self.generation)
        result = bound.run(x, emb, context, call)
        bound.count(self.generation, call.attention_reason)
        return result

    def _run_unet(
        self, unet: nn.Module, x: Tensor, timesteps: Tensor, context: Any, y: Tensor | None = None
    ) -> Tensor | None:
        """The UNet's output, or None if its own layers are the host's to compute."""
        names = self._families.get(type(unet))
        call = self._new_call(x)
        if names is None or _SWITCHED_OFF in call.stand_aside:
            return None
        reasons = [*call.stand_aside, *self._reasons_of_unet(unet, names)]
        if reasons:
            self.generation.add(reasons)
            return None
        bound = self._unets[unet]
        if not bound.takes(x, y):
            return None
        bound.networks.ensure(self._host, self.generation)
        result = bound.run(unet, x, timesteps, context, y, call)
        self.generation.add([])
        return result

    def _call_of(self, x: Tensor, emb: Any) -> ModelCall:
        """The state shared by all blocks of one call of a model: those that are handed the same embedding."""
        if (call := self._thread.call_with(emb)) is None:
            call = self._new_call(x)
            self._thread.remember(emb, call)
            self.generation.model_calls += 1
        return call

    def _new_call(self, x: Tensor) -> ModelCall:
        if not self._host.options().enabled:
            return new_call(x, [_SWITCHED_OFF], [])
        self._watch.look()
        return new_call(x, self._stand_aside_reasons(), self._host.attention_reasons())

    def _bound_container(self, container: nn.Module, names: Family) -> BoundContainer:
        bound = self._containers.get(container)
        if bound is None or not bound.holds():
            bound = BoundContainer(container, names, self._host.trusts, self._host.network_mark, self._watch)
            self._containers[container] = bound
        return bound

    def _containers_of(self, model: nn.Module) -> Iterator[tuple[nn.Module, Family]]:
        for module in model.modules():
            names = self._families.get(type(module))
            if names is not None and class_name(type(module)) == names.container:
                yield module, names

    def _reasons_of_unet(self, unet: nn.Module, names: Family) -> list[str]:
        """Why a UNet's own layers stay with the host; binds them if need be."""
        bound = self._unets.get(unet)
        if bound is None or not bound.holds():
            bound = BoundUNet(unet, names, self._host.trusts, self._host.network_mark, self._watch)
            self._unets[unet] = bound
        failure = self._broken.get(unet, bound.failure)
        return [] if failure is None else [failure]

    def _stand_aside_reasons(self) -> list[str]:
        reasons = list(self._host.stand_aside_reasons())
        for owner, patch in self._patches.items():
            if not is_original(patch.owner, patch.original) and not self._host.trusts(patch.original):
                reasons.append(f"{class_name(owner)}.forward had been replaced before us")
        return reasons

    def _note_failure(self, module: nn.Module, error: Exception) -> None:
        message = f"failed: {type(error).__name__}: {error}"
        if (bound := self._containers.get(module)) is not None:
            bound.count_as_host(self.generation, [message])
        else:
            self.generation.add([message])
        if not isinstance(error, _PASSING_FAILURES):
            self._broken[module] = message
        if message not in self._logged:
            self._logged.add(message)
            _log.error(
                "%s %s; it runs as the host's own module now", type(module).__name__, message, exc_info=error
            )


class _Thread(threading.local):
    """The latest call of a model on this thread; holds the embedding weakly, as it lives no longer."""

    _emb: weakref.ref[Any] | None = None
    _call: ModelCall | None = None

    def call_with(self, emb: Any) -> ModelCall | None:
        return self._call if emb is not None and self._emb is not None and self._emb() is emb else None

    def remember(self, emb: Any, call: ModelCall) -> None:
        self._emb = weakref.ref(emb) if isinstance(emb, Tensor) else None
        self._call = call


def _only_vector(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether nothing but SDXL's vector `y` is handed on beside what every UNet takes."""
    return len(args) <= 1 and not kwargs.keys() - {"y"} and not (args and kwargs)
