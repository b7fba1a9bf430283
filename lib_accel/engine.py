"""The engine: stands between a host's blocks and their classes' own code, and steps aside in time."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel import __version__
from lib_accel.bindings import Bindings
from lib_accel.blocks.operators.operator import Tuned
from lib_accel.bound import BoundUnit
from lib_accel.calls import ModelCall, Thread, new_call
from lib_accel.choice import Choice
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.errors import LayoutError
from lib_accel.graphs.cuda_graph import launcher_of_this_process
from lib_accel.graphs.launch import Launches, Outcome
from lib_accel.graphs.launcher import Launcher
from lib_accel.graphs.proof import COMPILED, HOST
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.host import Host
from lib_accel.launching import Launching
from lib_accel.layouts import ENTRIES
from lib_accel.layouts.compvis import Family
from lib_accel.layouts.entries import Arguments, Entry, Inputs, Model, UNet, Unit
from lib_accel.layouts.reading import COMPILED as BY_OTHERS
from lib_accel.layouts.reading import is_compiled
from lib_accel.measured import Measured
from lib_accel.options import Options
from lib_accel.patching import Method, junction
from lib_accel.report import Generation, ModelReport, Report, Tally
from lib_accel.steps import HostFailure
from lib_accel.tuning.tuner import Tuner

_log = logging.getLogger(__name__)


_SWITCHED_OFF = "switched off"
_IN_PIECES = "memory ran out, so that it was computed in pieces"


class Engine:
    """Accelerates the host's UNets, control models, VAEs and text encoders while it is attached.

    Models are met at their calls and known by weak references only: refiners, control models and models of
    other extensions need no registration, and a model that the host drops is freed.
    """

    def __init__(
        self,
        host: Host,
        choice: Choice | None = None,
        launches: Launches | None = None,
        tuner: Tuner | None = None,
    ) -> None:
        """`choice`, `launches`, `tuner`: None for those that keep what they find in the host's folder."""
        self._host = host
        verdicts = Verdicts(host.cache_folder())
        self._measured = Measured(
            host,
            verdicts,
            lambda device: self._launching.launcher_of(device, host.options()),
            choice,
            tuner,
            changed=self.release_memory,
        )
        self._choice = self._measured.choice
        self._bindings = Bindings(host)
        self._launching = Launching(host, self._bindings, launches or Launches(_launchers(), verdicts))
        self._is_attached = False
        self._is_new_picture = True  # since a denoiser was called; where the host does not tell
        self._thread = Thread()
        self._logged: set[tuple[str, str]] = set()
        self.generation = Generation()

    def attach(self) -> None:
        """Patches the classes of every imported family, and forgets earlier failures; harmless to repeat."""
        self._is_attached = True
        for entry in ENTRIES:
            home, _, name = entry.path.rpartition(".")
            owner = getattr(sys.modules.get(home), name, None)
            if owner is not None:
                place = junction(owner, "forward")
                place.join(self)
                self._bindings.enter(owner, entry, place.original)
        self._bindings.broken.clear()

    def detach(self) -> None:
        """Puts every class back as it was; what others captured of ours goes on as the original."""
        self._is_attached = False
        self._measured.cancel()
        for owner in self._bindings.entries:
            junction(owner, "forward").leave(self)
        self._bindings.forget()
        self._launching.release()

    def bind(self, *models: nn.Module) -> None:
        """Binds the units of models ahead of their first call, so that the report can speak of them.

        Forgets what was bound before: a patch on a block may hold the whole model, and we hold the block.
        """
        with self._bindings.lock:
            self._bindings.forget()
            for model in models:
                for module, unit in self._bindings.units_of(model):
                    self._bindings.unit(module, unit)

    def begin_generation(self) -> None:
        """Starts the counters of the report anew, and puts into effect what was found out meanwhile."""
        self._apply()
        self._launching.begin_generation()
        self.generation = Generation(networks=self.generation.networks)

    @property
    def weights(self) -> AbstractContextManager[Any]:
        """Held by who writes to weights of the host's models, so that none is moved in memory meanwhile."""
        return self._measured.weights

    def _apply(self) -> None:
        self._try(self._measured.apply)

    def _try(self, apply: Callable[[Options, Sequence[tuple[str, nn.Module]]], None]) -> None:
        try:
            apply(self._host.options(), self._host.models())
        except Exception as error:  # an image must come out; what holds goes on
            self._log_once("what was measured", _Failure.of(error), "the picture is drawn as the one before")

    def release_memory(self) -> None:
        """Drops all CUDA graphs, for somebody who needs the memory. What is drawn again is captured again."""
        self._launching.release()

    def merging(self, device: torch.device) -> Tuned | None:
        """What was chosen for merging LoRAs on a device, None for plain torch; it holds for one picture."""
        return self._measured.merging(self._host.options(), device)

    def warm_up(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Measures and compiles all that calls have asked for so far, instead of when nothing else goes on.

        Takes seconds to minutes. What is compiled is proved on the inputs of the next picture, and runs in
        those after it. tell: hears how much is still to be done. Returns whether all was done in time.
        """
        return self._measured.finish(timeout_s, tell)

    def forget_choices(self) -> int:
        """Forgets what was measured on this machine, here and on disk; returns how many choices that were."""
        return self._measured.clear()

    def kept_choices(self) -> int:
        """How many choices are kept on disk."""
        return self._choice.kept()

    def report(self) -> Report:
        """What runs how, and why. May be asked from any thread."""
        enabled = self._is_attached and self._host.options().enabled
        with self._bindings.lock:
            self._bindings.watch.look()
            tallies = [(name, self._tally_of(model)) for name, model in self._host.models()]
        models = [ModelReport(name, tally) for name, tally in tallies if tally.total]
        stand_aside = list(self._host.stand_aside_reasons())
        return Report(
            __version__,
            enabled,
            stand_aside,
            models,
            self.generation.copy(),
            self._choice.report(),
            self._launching.report(),
            self._measured.report(),
        )

    def _tally_of(self, model: nn.Module) -> Tally:
        tally = Tally()
        attention_reason = "; ".join(self._host.attention_reasons()) or None
        compiled = {inner for outer in model.modules() if is_compiled(outer) for inner in outer.modules()}
        for module, unit in self._bindings.units_of(model):
            bound = self._bindings.unit(module, unit)
            if module in compiled:  # its calls are traced, so none comes to us
                bound.count_as_host(tally, [BY_OTHERS])
            elif (failure := self._bindings.failure(module, None)) is not None:
                bound.count_as_host(tally, [failure])
            else:
                bound.count(tally, attention_reason)
        entry = self._bindings.entries.get(type(model))
        if isinstance(entry, UNet):
            failure = self._bindings.failure(model, self._bindings.unet(model, entry.names).failure)
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
        entry = self._bindings.entries.get(type(module))
        if self._thread.recorded is not None:
            return self._run_recorded(self._thread.recorded, entry, module, original, args, kwargs)
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

    def _run_recorded(
        self,
        call: ModelCall,
        entry: Entry | None,
        module: nn.Module,
        original: Method,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """A call inside of a model that is run as a whole: nothing is asked, counted or caught."""
        bound = self._bindings.known_unit(module)
        if not isinstance(entry, Unit) or bound is None or not entry.applies(module):
            return original(module, *args, **kwargs)
        return entry.output(module, bound.run(entry.inputs(*args, **kwargs), call), kwargs)

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
        if entry.denoises and self._measured.is_put_off:
            self._try(self._measured.make_up)
        x = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        if x is None:
            return original(model, *args, **kwargs)
        call = self._new_call(x)
        if entry.denoises:
            self._is_new_picture = True
            self._count(call)
        if entry.begins_pictures and self._is_new_picture and not self._host.tells_generations:
            self._is_new_picture = False  # of several text encoders and prompts, the first one begins it
            self._apply()
        if entry.as_tensors is not None and call.launch is not None:
            outcome = self._run_whole_model(
                model, original, entry.as_tensors(Arguments(tuple(args), dict(kwargs))), call
            )
            if outcome.is_done:
                return outcome.result
            call = call if outcome.is_given_up else call._replace(launch=None)
        with self._thread.inside(call):
            return original(model, *args, **kwargs)

    def _run_whole_model(
        self, model: nn.Module, original: Method, given: Arguments, call: ModelCall
    ) -> Outcome:
        def compute(given: Arguments) -> Any:
            with self._thread.recording(call):
                return original(model, *given.args, **given.kwargs)

        try:
            return self._launching.whole(model, compute, given, call, self.generation)
        except Exception as error:  # a fault of ours; the model goes the usual way
            self._note_failure(model, _Failure.of(error), is_lasting=False)
            return Outcome(is_given_up=True)

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
            if failure.is_passing:
                self._launching.release()
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
        bound = self._bindings.unit(module, unit)
        if reasons := self._bindings.reasons(module, bound.failure, call):
            bound.count_as_host(self.generation, reasons)
            return None
        return self._run_bound(module, bound, inputs, call)

    def _run_bound(self, module: nn.Module, bound: BoundUnit, inputs: Inputs, call: ModelCall) -> Tensor:
        bound.networks.ensure(self._host, call, self.generation)
        result = self._tried(module, bound, inputs, call)
        if result is None:
            self._launching.release()
            result = bound.run_in_pieces(inputs, call)
            self.generation.reasons[_IN_PIECES] += bound.size
        bound.count(self.generation, call.attention_reason)
        return result

    def _tried(self, module: nn.Module, bound: BoundUnit, inputs: Inputs, call: ModelCall) -> Tensor | None:
        """The unit's output, or None where memory ran out: all that was made on the way is free again."""
        try:
            outcome = self._launching.unit(module, bound, inputs, call, self.generation)
            result: Tensor = outcome.result if outcome.is_done else bound.run(inputs, call)
        except OUT_OF_MEMORY:
            return None
        return result

    def _join(self, block: nn.Module, x: Tensor, skip: Tensor, emb: Tensor, context: Any) -> Tensor | None:
        """The output of a block that is faster on these two; None if it is to be called on both joined.

        It is what such a call would come to: run, counted, and on failure left to the host (bound.Join).
        """
        recorded = self._thread.recorded
        call = self._thread.call_with(emb) if recorded is None else recorded
        if call is None or type(x) is not Tensor or type(skip) is not Tensor:
            return None
        try:
            bound = self._bindings.joining_unit(block, x, skip, call, self)
        except Exception as error:  # an image must come out; the call has its own way to say what is wrong
            self._log_once("joining", _Failure.of(error), "images are joined before blocks are called")
            return None
        if bound is None:
            return None
        inputs = Inputs(x, emb, context, skip)
        if recorded is not None:
            return bound.run(inputs, recorded)
        original = junction(type(block), "forward").original
        result: Tensor = self._dispatch(
            block,
            lambda: self._run_bound(block, bound, inputs, call),
            lambda: original(block, torch.cat([x, skip], dim=1), emb, context),
        )
        return result

    def _run_unet(self, names: Family, unet: nn.Module, given: _UNetInputs) -> Tensor | None:
        """The UNet's output, or None if its own layers are the host's to compute."""
        call = self._new_call(given.x)
        if _SWITCHED_OFF in call.stand_aside:
            return None
        bound = self._bindings.unet(unet, names)
        if reasons := self._bindings.reasons(unet, bound.failure, call):
            self.generation.add(reasons)
            return None
        if not bound.takes(given.x, given.y):
            return None
        bound.networks.ensure(self._host, call, self.generation)
        waves = bound.waves(unet, given.timesteps)
        join = self._join if bound.may_join(unet, self._bindings.trusts, call) else None

        def compute(inputs: Sequence[Any]) -> Tensor:
            x, waves, context, y = inputs
            try:
                with self._thread.recording(call):
                    return bound.run(unet, x, bound.embed(waves, y, call), context, call, join)
            except HostFailure as error:  # for the launcher, which knows of no host
                raise error.cause from None

        outcome = Outcome(is_given_up=True)
        if bound.joins_plainly(unet, self._bindings.trusts):
            inputs = given.x, waves, given.context, given.y
            outcome = self._launching.whole(unet, compute, inputs, call, self.generation, own=bound)
        if outcome.is_done:
            self._count(call)
            self.generation.replayed += outcome.is_replayed
            result: Tensor = outcome.result
        else:
            call = call if outcome.is_given_up else call._replace(launch=None)
            emb = bound.embed(waves, given.y, call)
            self._remember(emb, call)
            result = bound.run(unet, given.x, emb, given.context, call, join)
        self.generation.add([])
        return result

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
            self._measured.rest()
            return new_call(x, [_SWITCHED_OFF], [])
        reasons = list(host.stand_aside_reasons())
        if options.code == HOST:
            reasons.append("the option code asks for the host's own blocks")
        call = new_call(x, reasons, host.attention_reasons(), host.wanted_networks())
        call = call._replace(merging=self._measured.merging(options, x.device))
        choice = self._choice.for_call(options.code)
        if choice is not None:
            call = call._replace(choice=choice, is_forced=options.code == COMPILED)
        if (tuned := self._measured.tuned(options, x.device)) is not None:
            rules = call.rules._replace(tuned=tuned)
            call = call._replace(rules=rules, note_residual=self._measured.note_residual)
            call = call._replace(note_attention=self._measured.note_attention)
        if not call.stand_aside:
            with self._bindings.lock:
                self._bindings.watch.look()
        return call._replace(launch=self._launching.terms(options, call, x.device))

    def _note_failure(self, module: nn.Module, failure: _Failure, *, is_lasting: bool = True) -> None:
        message = f"failed: {failure.kind}: {failure.message}"
        if (bound := self._bindings.known_unit(module)) is not None:
            bound.count_as_host(self.generation, [message])
        else:
            self.generation.add([message])
        if is_lasting and not failure.is_passing:
            self._bindings.broken[module] = message
        self._log_once(type(module).__name__, failure, "the host's own module ran instead")

    def _log_once(self, what: str, failure: _Failure, instead: str) -> None:
        """Once for each kind of failure."""
        if (what, failure.kind) not in self._logged:
            self._logged.add((what, failure.kind))
            said = f"{what} failed: {failure.kind}: {failure.message}"
            _log.error("%s; %s\n%s", said, instead, failure.traceback)


def _launchers() -> dict[str, Launcher]:
    """None on AMD's GPUs, where graphs were never tried, nor with an allocator that cannot say their size."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return {}
    is_torchs_own = torch.cuda.memory.get_allocator_backend() == "native"
    return {"cuda": launcher_of_this_process()} if is_torchs_own else {}


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
