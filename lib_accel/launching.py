"""When calls of units and of whole models are handed to graphs.launch, and on which terms."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lib_accel.bindings import Bindings
from lib_accel.bound import BoundUNet, BoundUnit, ensure_all
from lib_accel.calls import ModelCall
from lib_accel.device import switches
from lib_accel.graphs.launch import Launches, Outcome, Terms, Work
from lib_accel.graphs.launcher import Launcher
from lib_accel.host import Host
from lib_accel.layouts.entries import Inputs
from lib_accel.options import Options
from lib_accel.report import Generation, LaunchReport

EAGER, FORCED = "eager", "graph"  # values of the option `launch`

# From here on, what is copied in and out takes as long as what is saved, some 10 launches of 5 microseconds.
_LARGEST_INPUT_BYTES = 64 * 2**20


class Launching:
    """Of one engine."""

    def __init__(self, host: Host, bindings: Bindings, launches: Launches) -> None:
        self._host, self._bindings, self._launches = host, bindings, launches
        self._thread: int | None = None

    def release(self) -> None:
        """Drops all recordings."""
        self._launches.release()

    def report(self) -> LaunchReport:
        """What is recorded, and why other calls are not."""
        return self._launches.report()

    def begin_generation(self) -> None:
        """The current thread draws the next picture; on others, a host decodes previews at most."""
        self._thread = threading.get_ident()

    def terms(self, options: Options, call: ModelCall, device: torch.device) -> Terms | None:
        """On which terms a call may be replayed, or None."""
        if options.launch == EAGER or call.stand_aside or not self._launches.serves(device):
            return None
        if options.graph_memory_mib == 0:
            self._launches.note("graph_memory_mib is 0")
            return None
        if self._host.tells_generations and threading.get_ident() != self._thread:
            self._launches.note("called on another thread than the picture's")
            return None
        codes = 0 if call.choice is None else call.choice.settled()
        if codes is None:  # proofs are made in calls that are not replayed
            return None
        return Terms(options.graph_memory_mib * 2**20, options.launch == FORCED, codes, switches())

    def launcher_of(self, device: torch.device, options: Options) -> Launcher | None:
        """What replays calls on a device, if that is asked for."""
        return None if options.launch == EAGER else self._launches.launcher_of(device)

    def unit(
        self, module: nn.Module, bound: BoundUnit, inputs: Inputs, call: ModelCall, generation: Generation
    ) -> Outcome:
        """A call of one unit."""
        if call.launch is None or not bound.is_worth_launching or not bound.is_ours(call.attention_reason):
            return Outcome()
        if inputs.size_bytes > _LARGEST_INPUT_BYTES:
            return self._not("its input is so large that to copy it takes longer than to launch its kernels")
        recorded = call.without_proofs()
        work = Work(
            module,
            lambda given: bound.run(given, recorded),
            inputs,
            bound.weights(),
            (bound.serial, call.launch.codes),
            (call.rules, call.autocast, call.launch.switches),
        )
        outcome = self._launches.run(work, call.launch)
        generation.replayed += outcome.is_replayed * bound.size
        return outcome

    def whole(
        self,
        model: nn.Module,
        compute: Callable[[Any], Any],
        given: Any,
        call: ModelCall,
        generation: Generation,
        own: BoundUNet | None = None,
    ) -> Outcome:
        """A call of a model, if all of it is ours to run.

        compute: runs the model on something like `given`, its units as they are bound. own: the model's own
        layers, where those are bound too.
        """
        if call.launch is None:
            return Outcome()
        if own is None and call.choice is not None:
            return self._not("others' loop around compiled blocks cannot be watched")
        frame = self._bindings.frame(model)
        if frame.failure is not None:
            return self._not(frame.failure)
        bounds = [self._bindings.unit(module, unit) for module, unit in frame.units.items()]
        for module, bound in zip(frame.units, bounds, strict=True):
            if self._bindings.failure(module, bound.failure) or not bound.is_ours(call.attention_reason):
                return self._not(f"not all blocks of {type(model).__name__} are ours")
        ensure_all([bound.networks for bound in bounds], self._host, call, generation)
        parts: list[Any] = [*bounds, frame] if own is None else [*bounds, frame, own]
        work = Work(
            model,
            compute,
            given,
            [weight for part in parts for weight in part.weights()],
            (*[part.serial for part in parts], call.launch.codes),
            (call.rules, call.autocast, call.launch.switches),
            is_foreign=own is None,
        )
        outcome = self._launches.run(work, call.launch)
        if outcome.is_done:
            for bound in bounds:
                bound.count(generation, call.attention_reason)
                generation.replayed += outcome.is_replayed * bound.size
        return outcome

    def _not(self, reason: str) -> Outcome:
        self._launches.note(reason)
        return Outcome(is_given_up=True)
