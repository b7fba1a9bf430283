"""The engine: stands between a host's blocks and their classes' own code, and steps aside in time."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lib_accel import __version__
from lib_accel.audit import ClassWatch
from lib_accel.bound import BoundUNet, BoundUnit, ModelCall, new_call
from lib_accel.choice import Choice
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.errors import LayoutError
from lib_accel.graphs.proof import COMPILED, HOST
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import workshop_of_this_process
from lib_accel.host import Host
from lib_accel.layouts import ENTRIES
from lib_accel.layouts.compvis import Family
from lib_accel.layouts.entries import Entry, Inputs, Model, UNet, Unit
from lib_accel.layouts.reading import COMPILED as BY_OTHERS
from lib_accel.layouts.reading import class_name, is_compiled, is_original
from lib_accel.patching import Method, is_ours, junction
from lib_accel.report import Generation, ModelReport, Report, Tally
from lib_accel.steps import HostFailure

_log = logging.getLogger(__name__)


_SWITCHED_OFF = "switched off"


class Engine:
    """Accelerates the host's UNets, control models, VAEs and text encoders while it is attached.

    Models are met at their calls and known by weak references only: refiners, control models and models of
    other extensions need no registration, and a model that the host drops is freed.
    """

    def __init__(self, host: Host, choice: Choice | None = None) -> None:
        """`choice`: None for one that keeps what it finds out in the host's folder."""
        self._host = host
        self._choice = choice or Choice(
            Verdicts(host.cache_folder()), workshop_of_this_process(), host.is_busy
        )
        self._entries: dict[type, Entry] = {}  # of the classes that are patched
        self._replaced: dict[type, str] = {}  # of those, what somebody had replaced before us, and the reason
        self._units: WeakKeyDictionary[nn.Module, BoundUnit] = WeakKeyDictionary()
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
        self._is_attached = True
        for entry in ENTRIES:
            home, _, name = entry.path.rpartition(".")
            owner = getattr(sys.modules.get(home), name, None)
            if owner is not None:
                self._entries[owner] = entry
                self._join(owner, entry)
        self._broken.clear()

    def _join(self, owner: type, entry: Entry) -> None:
        place = junction(owner, "forward")
        place.join(self)
        self._replaced.pop(owner, None)
        if not (
            isinstance(entry, Model) or is_original(owner, place.original) or self._trusts(place.original)
        ):
            self._replaced[owner] = f"{class_name(owner)}.forward had been replaced before us"

    def detach(self) -> None:
        """Puts every class back as it was; what others captured of ours goes on as the original."""
        self._is_attached = False
        self._choice.cancel()
        for owner in self._entries:
            junction(owner, "forward").leave(self)
        self._forget()

    def bind(self, *models: nn.Module) -> None:
        """Binds the units of models ahead of their first call, so that the report can speak of them.

        Forgets what was bound before: a patch on a block may hold the whole model, and we hold the block.
        """
        with self._lock:
            self._forget()
            for model in models:
                for module, unit in self._units_of(model):
                    self._bound_unit(module, unit)

    def _forget(self) -> None:
        self._units = WeakKeyDictionary()
        self._unets = WeakKeyDictionary()

    def begin_generation(self) -> None:
        """Starts the counters of the report anew, and puts into effect what was found out about codes."""
        self._choice.apply()
        self.generation = Generation(networks=self.generation.networks)

    def warm_up(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Compiles all that calls so far have asked for, instead of when nothing else is going on.

        Takes seconds to minutes. What is compiled is proved on the inputs of the next picture, and runs in
        those after it. tell: hears how many graphs are still to be made. Returns whether all was made in
        time.
        """
        return self._choice.finish(timeout_s, tell)

    def forget_choices(self) -> int:
        """Forgets what was measured on this machine, here and on disk; returns how many choices that were."""
        return self._choice.clear()

    def kept_choices(self) -> int:
        """How many choices are kept on disk."""
        return self._choice.kept()

    def report(self) -> Report:
        """What runs how, and why. May be asked from any thread."""
        enabled = self._is_attached and self._host.options().enabled
        with self._lock:
            self._watch.look()
            tallies = [(name, self._tally_of(model)) for name, model in self._host.models()]
        models = [ModelReport(name, tally) for name, tally in tallies if tally.total]
        stand_aside = list(self._host.stand_aside_reasons())
        graphs = self._choice.report()
        return Report(__version__, enabled, stand_aside, models, self.generation.copy(), graphs)

    def _tally_of(self, model: nn.Module) -> Tally:
        tally = Tally()
        attention_reason = "; ".join(self._host.attention_reasons()) or None
        compiled = {inner for outer in model.modules() if is_compiled(outer) for inner in outer.modules()}
        for module, unit in self._units_of(model):
            bound = self._bound_unit(module, unit)
            if module in compiled:  # its calls are traced, so none comes to us
                bound.count_as_host(tally, [BY_OTHERS])
            elif (failure := self._failure(module, None)) is not None:
                bound.count_as_host(tally, [failure])
            else:
                bound.count(tally, attention_reason)
        entry = self._entries.get(type(model))
        if isinstance(entry, UNet):
            failure = self._failure(model, self._bound_unet(model, entry.names).failure)
            tally.add([] if failure is None else [failure])
        return tally

    # Dispatch

    def owns(self, module: nn.Module) -> bool:
        """Whether calls of this module come to `receive` (patching.Receiver)."""
        return self._is_attached and self._host.owns(module)

    def receive(
        self, module: nn.Module, original: Method, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What a call of a patched class's `forward` gives: ours, or the original's."""
        entry = self._entries.get(type(module))
        activity = self._choice.activity
        activity.enter()
        try:
            if isinstance(entry, Unit):
                return self._receive_unit(entry, module, original, args, kwargs)
            if isinstance(entry, UNet):
                return self._receive_unet(entry, module, original, args, kwargs)
            if isinstance(entry, Model):
                return self._receive_model(entry, module, original, args, kwargs)
            return original(module, *args, **kwargs)  # a subclass, which may do anything
        finally:
            activity.leave()

    def _receive_unit(
        self, unit: Unit, module: nn.Module, original: Method, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        if not unit.applies(module):
            return original(module, *args, **kwargs)
        try:
            inputs: Inputs | str = unit.inputs(*args, **kwargs)
        except LayoutError as error:
            inputs = str(error)
        except TypeError:  # not the arguments of this class: its own code shall say so
            return original(module, *args, **kwargs)
        result = self._dispatch(
            module,
            lambda: self._run_unit(unit, module, inputs),
            lambda: _Hosts(original(module, *args, **kwargs)),
        )
        return result.result if isinstance(result, _Hosts) else unit.output(module, result, kwargs)

    def _receive_unet(
        self, entry: UNet, unet: nn.Module, original: Method, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        try:
            given = _UNetInputs(*args, **kwargs)
        except TypeError:  # more than every UNet takes, or less
            return original(unet, *args, **kwargs)
        if not isinstance(given.x, Tensor):
            return original(unet, *args, **kwargs)
        return self._dispatch(
            unet,
            lambda: self._run_unet(entry.names, unet, given),
            lambda: original(unet, *args, **kwargs),
        )

    def _receive_model(
        self, entry: Model, model: nn.Module, original: Method, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        self._host.before_call(model)
        x = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        if x is None:
            return original(model, *args, **kwargs)
        call = self._new_call(x)
        if entry.denoises:
            self._count(call)
        if entry.begins_pictures and not self._host.tells_generations:
            self._choice.apply()
        with self._thread.inside(call):
            return original(model, *args, **kwargs)

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

    def _run_unit(self, unit: Unit, module: nn.Module, inputs: Inputs | str) -> Tensor | None:
        """The unit's output, or None if it is the host's to compute; for `inputs` that is a reason, say."""
        if isinstance(inputs, str) or not isinstance(inputs.x, Tensor):
            if self._host.options().enabled:
                self.generation.add([inputs if isinstance(inputs, str) else "called without a tensor"])
            return None
        call = self._thread.call_with(inputs.emb) or self._begin_call(inputs.x, inputs.emb)
        if _SWITCHED_OFF in call.stand_aside:
            return None
        bound = self._bound_unit(module, unit)
        if reasons := self._reasons(module, bound.failure, call):
            bound.count_as_host(self.generation, reasons)
            return None
        bound.networks.ensure(self._host, call.networks, self.generation)
        result = bound.run(inputs, call)
        bound.count(self.generation, call.attention_reason)
        return result

    def _run_unet(self, names: Family, unet: nn.Module, given: _UNetInputs) -> Tensor | None:
        """The UNet's output, or None if its own layers are the host's to compute."""
        call = self._new_call(given.x)
        if _SWITCHED_OFF in call.stand_aside:
            return None
        bound = self._bound_unet(unet, names)
        if reasons := self._reasons(unet, bound.failure, call):
            self.generation.add(reasons)
            return None
        if not bound.takes(given.x, given.y):
            return None
        bound.networks.ensure(self._host, call.networks, self.generation)
        emb = bound.embed(unet, given.timesteps, given.y, call)
        self._remember(emb, call)
        result = bound.run(unet, given.x, emb, given.context, call)
        self.generation.add([])
        return result

    def _reasons(self, module: nn.Module, unread: str | None, call: ModelCall) -> Sequence[str]:
        """Why a module stays with the host in this call; empty if it does not."""
        if call.stand_aside:
            return call.stand_aside
        failure = self._failure(module, unread)
        return () if failure is None else (failure,)

    def _failure(self, module: nn.Module, unread: str | None) -> str | None:
        """Why a module stays with the host in any call; `unread`: why it could not be read, if so."""
        return self._replaced.get(type(module)) or self._broken.get(module, unread)

    def _begin_call(self, x: Tensor, emb: Any) -> ModelCall:
        """The state shared by all blocks of one call of a model: those that are handed the same embedding."""
        call = self._new_call(x)
        if emb is not None:
            self._remember(emb, call)
        return call

    def _remember(self, emb: Any, call: ModelCall) -> None:
        self._thread.remember(emb, call)
        self._count(call)

    def _count(self, call: ModelCall) -> None:
        if _SWITCHED_OFF not in call.stand_aside:
            self.generation.model_calls += 1

    def _new_call(self, x: Tensor) -> ModelCall:
        host, options = self._host, self._host.options()
        if not options.enabled:
            self._choice.rest()
            return new_call(x, [_SWITCHED_OFF], [])
        reasons = list(host.stand_aside_reasons())
        if options.code == HOST:
            reasons.append("the option code asks for the host's own blocks")
        call = new_call(x, reasons, host.attention_reasons(), host.wanted_networks())
        choice = self._choice.for_call(options.code)
        if choice is not None:
            call = call._replace(choice=choice, is_forced=options.code == COMPILED)
        if not call.stand_aside:
            with self._lock:
                self._watch.look()
        return call

    def _bound_unit(self, module: nn.Module, unit: Unit) -> BoundUnit:
        bound = self._units.get(module)
        if bound is None or not bound.holds():
            with self._lock:
                mark = self._host.network_mark
                bound = self._units[module] = BoundUnit(module, unit, self._trusts, mark, self._watch)
        return bound

    def _bound_unet(self, unet: nn.Module, names: Family) -> BoundUNet:
        bound = self._unets.get(unet)
        if bound is None or not bound.holds():
            with self._lock:
                mark = self._host.network_mark
                bound = self._unets[unet] = BoundUNet(unet, names, self._trusts, mark, self._watch)
        return bound

    def _trusts(self, method: Callable[..., Any]) -> bool:
        return is_ours(method) or self._host.trusts(method)

    def _units_of(self, model: nn.Module) -> Iterator[tuple[nn.Module, Unit]]:
        for module in model.modules():
            entry = self._entries.get(type(module))
            if isinstance(entry, Unit) and entry.applies(module):
                yield module, entry

    def _note_failure(self, module: nn.Module, failure: _Failure) -> None:
        message = f"failed: {failure.kind}: {failure.message}"
        if (bound := self._units.get(module)) is not None:
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
        return cls(type(error).__name__, str(error), isinstance(error, OUT_OF_MEMORY), text)


class _UNetInputs(NamedTuple):
    """The arguments of UNetModel.forward; `y` is SDXL's vector."""

    x: Any
    timesteps: Any = None
    context: Any = None
    y: Any = None


class _Hosts(NamedTuple):
    """What the host's own code returned, in whatever form."""

    result: Any


class _Thread(threading.local):
    """The call of a model on this thread: the one that runs, or else the latest.

    The latest is known by its embedding, which is held weakly, as it lives no longer.
    """

    _running: ModelCall | None = None
    _emb: weakref.ref[Any] | None = None
    _call: ModelCall | None = None

    @contextlib.contextmanager
    def inside(self, call: ModelCall) -> Iterator[None]:
        """All units that are called in the block belong to this call."""
        before, self._running = self._running, call
        try:
            yield
        finally:
            self._running = before

    def call_with(self, emb: Any) -> ModelCall | None:
        if self._running is not None:
            return self._running
        return self._call if emb is not None and self._emb is not None and self._emb() is emb else None

    def remember(self, emb: Any, call: ModelCall) -> None:
        self._emb = weakref.ref(emb) if isinstance(emb, Tensor) else None
        self._call = call
