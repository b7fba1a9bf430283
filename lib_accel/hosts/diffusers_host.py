"""A diffusers pipeline as the engine's host: its models, whose calls are ours, and LoRAs on their way.

Nothing here imports diffusers by name: pipelines and models are known by their attributes and class names.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from lib_accel.engine import Engine
from lib_accel.graphs.verdicts import default_folder
from lib_accel.layouts.reading import class_name, is_compiled
from lib_accel.lora.arrival import TEXT, UNET, Arrival
from lib_accel.options import Options

UNET_CLASS = "diffusers.models.unets.unet_2d_condition.UNet2DConditionModel"

_NEVER = (0,)  # the models at the time when a module was last looked for; no id is 0

# The components that a LoRA may change.
FUSED_FOR_TEXT = ("text_encoder", "text_encoder_2")
FUSED = ("unet", *FUSED_FOR_TEXT)

# The class of a module at whose call each of them is met.
_ENCODER = "transformers.models.clip.modeling_clip.CLIPEncoder"
_MET_AT = {"unet": UNET_CLASS} | dict.fromkeys(FUSED_FOR_TEXT, _ENCODER)


def unwrapped(model: Any) -> Any:
    """The module itself, where torch.compile returned another around it."""
    return getattr(model, "_orig_mod", model)


class Lifetime:
    """Detaches an engine when its pipeline's UNet is gone, whichever UNet the pipeline has by then."""

    def __init__(self, host: DiffusersHost, engine: Engine) -> None:
        self._host, self._engine = host, engine
        self._wait()

    def _wait(self) -> None:
        unet = self._host.components(FUSED[:1]).get("unet")
        if unet is None:
            self._engine.detach()
        else:
            self._waiting = weakref.finalize(unet, self._wait)
            self._waiting.atexit = False  # or it would wait anew for ever, with the UNet alive

    def end(self) -> None:
        """Detaches it now."""
        self._waiting.detach()
        self._engine.detach()


class DiffusersHost:
    """host.Host for one pipeline."""

    network_mark: str | None = None  # networks are fused when they are set, not when a layer is next called
    tells_generations = False

    def __init__(self, pipe: Any, options: Options) -> None:
        self.wanted = options
        self.arrival: Arrival | None = None  # networks on their way
        self._pipe = weakref.ref(pipe)
        # None for what is the pipeline's; for what is not, the pipeline's models at that time.
        self._owned: WeakKeyDictionary[nn.Module, tuple[int, ...] | None] = WeakKeyDictionary()
        self._models: dict[str, weakref.ref[nn.Module]] = {}
        self._take_stock()

    def owns(self, module: nn.Module) -> bool:
        """Whether the module is part of one of the pipeline's models, also of one that it was given later."""
        seen_with = self._owned.get(module, _NEVER)
        if seen_with is None:
            return True
        now = self._mark()
        if seen_with != now:
            self._take_stock()
            if self._owned.get(module, _NEVER) is None:
                return True
            self._owned[module] = now
        return False

    def _mark(self) -> tuple[int, ...]:
        """The pipeline's models in brief: a model of somebody else's asks this at the call of each block."""
        pipe = self._pipe()
        values = () if pipe is None else tuple(vars(pipe).values())
        return tuple([id(value) for value in values if isinstance(value, (nn.Module, list, tuple))])

    def _take_stock(self) -> None:
        live = self._live()
        if not live:  # the pipeline is gone; its models may be in use by another
            return
        self._models = {name: weakref.ref(model) for name, model in live.items()}
        for model in live.values():
            for module in model.modules():
                self._owned[module] = None

    def _live(self) -> dict[str, nn.Module]:
        """The models that are the pipeline's now; not `components`, which takes longer than a small block."""
        pipe = self._pipe()
        found: dict[str, nn.Module] = {}
        for name, component in [] if pipe is None else list(vars(pipe).items()):
            members = component if isinstance(component, (list, tuple)) else [component]
            models = [member for member in members if isinstance(member, nn.Module)]
            for number, model in enumerate(models, 1):
                found[name if len(models) == 1 else f"{name} {number}"] = model
        return found

    def components(self, names: Sequence[str]) -> dict[str, nn.Module]:
        """Those of the named components that the pipeline has, or had when it was last asked."""
        models = dict(self.models())
        return {name: unwrapped(models[name]) for name in names if name in models}

    def options(self) -> Options:
        """What the handle was told."""
        return self.wanted

    def stand_aside_reasons(self) -> Sequence[str]:
        """None: diffusers' modes are seen in the modules themselves."""
        return ()

    def attention_reasons(self) -> Sequence[str]:
        """None: a processor that computes something else is seen in the attention itself."""
        return ()

    def trusts(self, method: Callable[..., Any]) -> bool:
        """Whether it is the packages' own, decorated; not accelerate's, which moves weights around a call."""
        home = getattr(method, "__globals__", {}).get("__name__", "")
        return home.split(".")[0] in ("diffusers", "transformers", "torch")

    def wanted_networks(self) -> tuple[Hashable, ...]:
        """None that a layer would have to look for; see Handle.set_loras."""
        return ()

    def apply_networks(self, layers: Sequence[nn.Module], merging: Any = None) -> None:
        """Nothing is left to do."""

    def are_calls_seen(self) -> bool:
        """Whether `before_call` is called for all models that a LoRA may change."""
        for name, model in self.components(FUSED).items():
            modules = list(model.modules())
            homes = {class_name(type(module)) for module in modules}
            if _MET_AT[name] not in homes or any(map(is_compiled, modules)) or name in self._compiled():
                return False
        return True

    def _compiled(self) -> list[str]:
        """Components that torch.compile returned another module for."""
        return [name for name, model in self.models() if unwrapped(model) is not model]

    def before_call(self, model: nn.Module) -> None:
        """Has the networks that are on their way written where this model must carry them."""
        arrival = self.arrival
        if arrival is None:
            return
        for name, component in self.components(FUSED).items():
            if any(module is model for module in component.modules()):
                arrival.before_call(UNET if name == "unet" else TEXT)
        if arrival.is_done and arrival is self.arrival:
            self.arrival = None

    def is_busy(self) -> bool:
        """Not known: what a pipeline does between two calls of its models takes no time."""
        return False

    def cache_folder(self) -> Path:
        """The user's caches, or what ACCEL_CACHE_DIR says."""
        return default_folder()

    def models(self) -> Sequence[tuple[str, nn.Module]]:
        """The pipeline's models by the names of its components."""
        self._take_stock()
        live = ((name, reference()) for name, reference in self._models.items())
        return [(name, model) for name, model in live if model is not None]
