"""diffusers: `accelerate(pipe)` and the handle that it returns.

Nothing here imports diffusers by name: pipelines and models are known by their attributes and class names.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

from torch import nn

from lib_accel.choice import Choice
from lib_accel.engine import Engine
from lib_accel.errors import OptionError, PipelineError
from lib_accel.hosts.diffusers_host import (
    FUSED,
    FUSED_FOR_TEXT,
    UNET_CLASS,
    DiffusersHost,
    Lifetime,
    unwrapped,
)
from lib_accel.layouts.reading import class_name
from lib_accel.lora.arrival import UNET, Arrival
from lib_accel.lora.formats import LoraError
from lib_accel.lora.fusion import Fused, Fuser, Wanted
from lib_accel.lora.library import Library, Lora, check_lora
from lib_accel.options import Options
from lib_accel.patching import junction
from lib_accel.report import Report
from lib_accel.storage.networks import fuser_of
from lib_accel.storage.weights import Storage, Stored

# Where diffusers 0.32 and later, or else before, has the models that a pipeline may be given later.
_CONTROL_MODELS = ("diffusers.models.controlnets.controlnet", "diffusers.models.controlnet")


def accelerate(pipe: Any, **options: Any) -> Handle:
    """Runs the models of a diffusers pipeline from our own code, until the handle is told to stop.

    pipe: any pipeline whose UNet is a UNet2DConditionModel. Pipelines that share its models (`from_pipe`) are
    accelerated with it; models that it is given later, a ControlNet say, are found when they are called.
    options: fields of lib_accel.Options. No module, attribute or key of a state dict changes.

    Raises PipelineError if there is no such UNet, or if it is accelerated already, and OptionError.
    """
    wanted = _options(options)
    unet = unwrapped(getattr(pipe, "unet", None))
    home = next((kind for kind in type(unet).__mro__ if class_name(kind) == UNET_CLASS), None)
    if unet is None or home is None:
        found = (
            f"{type(pipe).__name__} without a UNet" if unet is None else f"a UNet of {type(unet).__name__}"
        )
        raise PipelineError(
            f"accelerate: got {found}, expected a pipeline whose UNet is a UNet2DConditionModel"
        )
    if junction(home, "forward").taker(unet) is not None:
        raise PipelineError(
            f"accelerate: the UNet of this {type(pipe).__name__} is accelerated already; "
            "use the first handle, or call its detach() before"
        )
    return Handle(pipe, wanted)


def _options(given: Mapping[str, Any]) -> Options:
    known = [option.name for option in fields(Options)]
    for name in given:
        if name not in known:
            raise OptionError(f"{name}: no such option, expected one of {', '.join(known)}")
    return Options(**given)


class Handle:
    """An accelerated pipeline; made by `accelerate`.

    It may be dropped: acceleration lasts as long as the UNet does, or until `detach`. LoRAs then stay.
    """

    def __init__(self, pipe: Any, options: Options, choice: Choice | None = None) -> None:
        """`choice`: see Engine."""
        self._host = DiffusersHost(pipe, options)
        self._engine = Engine(self._host, choice)
        self._lock = threading.RLock()  # around the fuser and the counters of a generation
        self._library = Library(options.lora_cache_mib)
        self._ahead: ThreadPoolExecutor | None = None  # reads for `prefetch`
        self._fuser: Fuser | None = None
        self._storage = Storage()
        self._fused_models: Mapping[str, nn.Module] = {}
        for home in _CONTROL_MODELS:
            with contextlib.suppress(ImportError):
                importlib.import_module(home)
                break
        self._engine.attach()
        self._lifetime = Lifetime(self._host, self._engine)

    @property
    def enabled(self) -> bool:
        """Whether blocks run from our code; takes effect at the next call of a model. Networks stay fused."""
        return self._host.wanted.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._host.wanted = replace(self._host.wanted, enabled=value)

    def set_loras(self, loras: Sequence[Lora]) -> Fused:
        """Fuses exactly these LoRAs into the weights, instead of those that were; none gives the bits back.

        loras: (path or state dict, scale for the text encoders, scale for the UNet), with a number of ranks
        at the end if a LoRA is to have its first so many only. Networks of other kinds are LoRAs too here.
        Order counts for those that read the weight: DoRA, (IA)3, OFT, BOFT, GLoRA.

        Files are read once and kept, up to the option lora_cache_mib. While networks are fused the weights
        are the handle's. The pristine bits of all weights that ever carried one stay in memory, `base_bytes`
        of it, until `detach`, so that an empty set and the next one copy nothing. Threads take turns.

        Raises LoraError, before any weight is changed, if a file cannot be read, does not fit or is broken,
        or if others wrote to fused weights. An empty set leaves such weights as they are, and says so once.
        """
        self._settle()
        return self._fuse([self._wanted(lora) for lora in loras], None)

    def start_loras(self, loras: Sequence[Lora], *, late_calls: int = 0) -> Arrival:
        """As `set_loras`, but returns at once: LoRAs are read and fused on a thread of its own.

        Models wait for them when they are called. Compiled models, and those of other classes than CLIP and
        UNet2DConditionModel, are not met at their calls: with them, this waits itself. The text encoders'
        weights are written before the UNet's, so that these are written while the prompt is encoded. What is
        wrong with a LoRA is raised by the call of a model, and by `wait()` of what this returns.

        late_calls: how many calls of the UNet, one a step, may go on without the new set as long as it is not
        read yet. This changes the picture. It is of use only where text encoders carry no LoRA, before and
        then: where they do, the prompt is encoded when all is read.
        """
        self._settle()
        for lora in loras:
            check_lora(lora)
        with self._lock:
            carries_text = self._fuser is not None and self._fuser.carries(FUSED_FOR_TEXT)

        def prepare() -> Callable[[str], None]:
            wanted = [self._wanted(lora) for lora in loras]
            with self._lock:
                self._current_fuser().check(wanted)
            return lambda part: self._fuse_part(wanted, part)

        changes_text = carries_text or any(te_scale for _, te_scale, *_ in loras)
        arrival = Arrival(prepare, late_calls, changes_text=changes_text)
        if self._host.are_calls_seen():
            self._host.arrival = arrival
        else:  # nobody would wait for it
            with contextlib.suppress(Exception):  # what is wrong is said by `wait`
                arrival.wait()
        return arrival

    def _fuse_part(self, wanted: Sequence[Wanted], part: str) -> None:
        self._fuse(wanted, FUSED if part == UNET else FUSED_FOR_TEXT)

    def _fuse(self, wanted: Sequence[Wanted], components: Collection[str] | None) -> Fused:
        with self._lock:
            began = time.perf_counter()
            fused = self._current_fuser().fuse(wanted, components)
            self._library.keep_given([each.network for each in wanted])
            self._engine.generation.fuse_s += time.perf_counter() - began
            self._engine.generation.networks = len(wanted)
        return fused

    def _settle(self) -> None:
        """Ends what `start_loras` began; another set follows, so that nobody minds if it fails."""
        arrival, self._host.arrival = self._host.arrival, None
        if arrival is not None:
            with contextlib.suppress(Exception):
                arrival.wait()

    def prefetch(self, loras: Sequence[Lora]) -> Future[None]:
        """Reads LoRAs that will be set soon, and finds their layers, on a thread of its own.

        The weights stay as they are. What is wrong with a LoRA is not said here but by `set_loras`. Returns
        at once what tells when all is read.
        """
        with self._lock:
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(1, thread_name_prefix="accel-prefetch")
            return self._ahead.submit(self._prepare, list(loras))

    def _prepare(self, loras: Sequence[Lora]) -> None:
        for lora in loras:
            with contextlib.suppress(LoraError):
                wanted = self._wanted(lora)
                with self._lock:
                    if self._fuser is None or self._is_current(self._host.components(FUSED)):
                        self._current_fuser().check([wanted])

    def _wanted(self, lora: Lora) -> Wanted:
        check_lora(lora)
        source, te_scale, unet_scale, *ranks = lora
        return Wanted(self._library.read(source), te_scale, unet_scale, *ranks)

    @property
    def base_bytes(self) -> int:
        """Memory that the pristine bits of weights take, on the GPU where it has room and else the CPU's."""
        with self._lock:
            return 0 if self._fuser is None else self._fuser.base_bytes

    def _current_fuser(self) -> Fuser:
        """The fuser of the pipeline's models, which may be others than before; those lose their networks."""
        models = self._host.components(FUSED)
        if self._fuser is not None and not self._is_current(models):
            self._fuser.restore()
            self._fuser = None
        if self._fuser is None:
            self._fuser = fuser_of(models, self._storage, self._engine.merging, self._engine.weights)
            self._fused_models = weakref.WeakValueDictionary(models)
        return self._fuser

    def _is_current(self, models: Mapping[str, nn.Module]) -> bool:
        """Whether the fuser is for these models."""
        return models == dict(self._fused_models)

    def store_weights(self, kind: str | None) -> Stored:
        """Keeps weights of linear layers in eight bits a number from now on, which changes the picture.

        kind: "int8" or "float8" (e4m3fn), with a scale for each row, or None for what was loaded, to the bit.
        Of UNet, ControlNets and text encoders; those that come later are stored by another call. Not while a
        picture is made. LoRAs are fused into what was loaded, and their sum is stored, whichever came first.

        Cost: a matrix is made in full at each use of it, and calls are not replayed as CUDA graphs. Outputs
        of UNets of random weights differ by 0.2 to 8 % (relative L2) with int8 and 1 to 27 % with float8,
        those of the demo's trained one by 0.1 and 0.6 %. Gain: in float16 SDXL's UNet takes 2773 MiB instead
        of 4897, SD1's 1383 instead of 1639. What was loaded is in the CPU's memory meanwhile; with models on
        the CPU there is no gain.

        To save such a model, or to write to its weights, is an error. Raises OptionError for another kind,
        StorageError if weights are on the meta device or others replaced stored ones, and LoraError as
        `set_loras([])` does.
        """
        if self._host.arrival is not None:
            self._host.arrival.wait()
        with self._lock, self._engine.weights:
            return self._storage.store(self._host.models(), kind, self._fuser)

    def warm_up(self, timeout_s: float | None = None, tell: Callable[[int], None] | None = None) -> bool:
        """Compiles all that pictures so far have asked for, see Engine.warm_up.

        With the option code="measured" or "compiled"; else there is nothing to do.
        """
        return self._engine.warm_up(timeout_s, tell)

    def release_memory(self) -> None:
        """Drops all CUDA graphs, see Engine.release_memory: before something else needs the GPU's memory."""
        self._engine.release_memory()

    def begin_generation(self) -> None:
        """Starts the counters of `report().generation` anew, and lets blocks take the code that was chosen.

        They do so by themselves whenever a prompt is encoded; a pipeline that is given embeddings never does.
        """
        self._engine.begin_generation()

    def report(self) -> Report:
        """What runs how, and why. The generation is all that happened since the latest begin_generation."""
        return self._engine.report()

    def detach(self) -> None:
        """Takes all LoRAs off and leaves the models as they had been; harmless to repeat."""
        self._settle()
        with self._lock:
            fuser, self._fuser = self._fuser, None
            self._library.keep_given(())
            ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.shutdown(wait=False, cancel_futures=True)
        try:
            if fuser is not None:
                fuser.restore()
                self._engine.generation.networks = 0
        finally:
            try:
                self._storage.store((), None, None)
            finally:
                self._lifetime.end()
