"""The engine: stands between a host's blocks and their classes' own code, and steps aside in time."""

from __future__ import annotations

import functools
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lib_accel import __version__
from lib_accel.audit import ClassWatch
from lib_accel.bound import BoundContainer, BoundUNet, ModelCall, new_call
from lib_accel.choice import HostFailure
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
        self._lock = threading.RLock()  # around what is bound and watched: reports come from other threads
        self._logged: set[tuple[str, str]] = set()
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
        with self._lock:
            self._forget()
            for container, names in self._containers_of(model):
                self._bound_container(container, names)

    def _forget(self) -> None:
        self._containers = WeakKeyDictionary()
        self._unets = WeakKeyDictionary()

    def begin_generation(self) -> None:
        """Starts the counters of the report anew."""
        self.generation = Generation(networks=self.generation.networks)

    def report(self) -> Report:
        """What runs how, and why. May be asked from any thread."""
        enabled = self._is_attached and self._host.options().enabled
        with self._lock:
            self._watch.look()
            models = [ModelReport(name, self._tally_of(model)) for name, model in self._host.models()]
        return Report(__version__, enabled, self._stand_aside_reasons(), models, self.generation.copy())

    def _tally_of(self, model: nn.Module) -> Tally:
        tally = Tally()
        attention_reason = "; ".join(self._host.attention_reasons()) or None
        for container, names in self._containers_of(model):
            bound = self._bound_container(container, names)
            if (failure := self._broken.get(container)) is not None:
                bound.count_as_host(tally, [failure])
            else:
                bound.count(tally, attention_reason)
        family = self._families.get(type(model))
        if family is not None:
            failure = self._broken.get(model, self._bound_unet(model, family).failure)
            tally.add([] if failure is None else [failure])
        return tally

    # Dispatch

    def _for_containers(self, original: Method) -> Method:
        @functools.wraps(original)
        def forward(container: Any, x: Any, emb: Any, context: Any = None, *args: Any, **kwargs: Any) -> Any:
            if not self._is_attached or args or kwargs or not isinstance(x, Tensor):
                return original(container, x, emb, context, *args, **kwargs)
            return self._dispatch(
                container,
                lambda: self._run_container(container, x, emb, context),
                lambda: original(container, x, emb, context),
            )

        return forward

    def _for_unets(self, original: Method) -> Method:
        @functools.wraps(original)
        def forward(
            unet: Any, x: Any, timesteps: Any = None, context: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            if not self._is_attached or not isinstance(x, Tensor) or not _only_vector(args, kwargs):
                return original(unet, x, timesteps, context, *args, **kwargs)
            return self._dispatch(
                unet,
                lambda: self._run_unet(unet, x, timesteps, context, *args, **kwargs),
                lambda: original(unet, x, timesteps, context, *args, **kwargs),
            )

        return forward

    def _dispatch(
        self, module: nn.Module, run_ours: Callable[[], Tensor | None], run_hosts: Callable[[], Any]
    ) -> Any:
        """What ours gives; what the host's gives, if that is None or fails. Errors of the host come out."""
        failure = host_error = None
        try:
            result = run_ours()
            if result is not None:
                return result
        except HostFailure as error:
            host_error = error.cause
        except Exception as error:  # an image must come out; _note_failure sees that nothing hides
            failure = _Failure.of(error)
        if host_error is not None:  # raised out here, where nothing is chained to it
            try:
                raise host_error
            finally:
                del host_error  # it holds this frame
        hosts = run_hosts()
        if failure is not None:  # the host's own code could do it, so the fault is ours
            self._note_failure(module, failure)
        return hosts

    def _run_container(self, container: nn.Module, x: Tensor, emb: Any, context: Any) -> Tensor | None:
        """The container's output, or None if it is the host's to compute."""
        if (call := self._thread.call_with(emb)) is None:
            call = self._begin_call(x, emb)
        names = self._families.get(type(container))
        if names is None or _SWITCHED_OFF in call.stand_aside:
            return None
        if call.stand_aside:
            for _ in container._modules:
                self.generation.add(call.stand_aside)
            return None
        bound = self._bound_container(container, names)
        if (failure := self._broken.get(container, bound.failure)) is not None:
            bound.count_as_host(self.generation, [failure])
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
        if call.stand_aside:
            self.generation.add(call.stand_aside)
            return None
        bound = self._bound_unet(unet, names)
        if (failure := self._broken.get(unet, bound.failure)) is not None:
            self.generation.add([failure])
            return None
        if not bound.takes(x, y):
            return None
        bound.networks.ensure(self._host, self.generation)
        emb = bound.embed(unet, timesteps, y, call)
        self._remember(emb, call)
        result = bound.run(unet, x, emb, context, call)
        self.generation.add([])
        return result

    def _begin_call(self, x: Tensor, emb: Any) -> ModelCall:
        """The state shared by all blocks of one call of a model: those that are handed the same embedding."""
        call = self._new_call(x)
        self._remember(emb, call)
        return call

    def _remember(self, emb: Any, call: ModelCall) -> None:
        self._thread.remember(emb, call)
        self.generation.model_calls += 1

    def _new_call(self, x: Tensor) -> ModelCall:
        if not self._host.options().enabled:
            return new_call(x, [_SWITCHED_OFF], [])
        call = new_call(x, self._stand_aside_reasons(), self._host.attention_reasons())
        if not call.stand_aside:
            with self._lock:
                self._watch.look()
        return call

    def _bound_container(self, container: nn.Module, names: Family) -> BoundContainer:
        bound = self._containers.get(container)
        if bound is None or not bound.holds():
            with self._lock:
                trusts, mark = self._host.trusts, self._host.network_mark
                bound = self._containers[container] = BoundContainer(
                    container, names, trusts, mark, self._watch
                )
        return bound

    def _bound_unet(self, unet: nn.Module, names: Family) -> BoundUNet:
        bound = self._unets.get(unet)
        if bound is None or not bound.holds():
            with self._lock:
                trusts, mark = self._host.trusts, self._host.network_mark
                bound = self._unets[unet] = BoundUNet(unet, names, trusts, mark, self._watch)
        return bound

    def _containers_of(self, model: nn.Module) -> Iterator[tuple[nn.Module, Family]]:
        for module in model.modules():
            names = self._families.get(type(module))
            if names is not None and class_name(type(module)) == names.container:
                yield module, names

    def _stand_aside_reasons(self) -> list[str]:
        reasons = list(self._host.stand_aside_reasons())
        for owner, patch in self._patches.items():
            if not is_original(patch.owner, patch.original) and not self._host.trusts(patch.original):
                reasons.append(f"{class_name(owner)}.forward had been replaced before us")
        return reasons

    def _note_failure(self, module: nn.Module, failure: _Failure) -> None:
        message = f"failed: {failure.kind}: {failure.message}"
        if (bound := self._containers.get(module)) is not None:
            bound.count_as_host(self.generation, [message])
        else:
            self.generation.add([message])
        if not failure.is_passing:
            self._broken[module] = message
        key = type(module).__name__, failure.kind
        if key not in self._logged:
            self._logged.add(key)
            _log.error("%s %s; the host's own module ran instead\n%s", key[0], message, failure.traceback)


class _Failure(NamedTuple):
    """An exception as text: its traceback would keep our tensors in memory while the host needs it."""

    kind: str
    message: str
    is_passing: bool
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return cls(type(error).__name__, str(error), isinstance(error, _PASSING_FAILURES), text)


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
