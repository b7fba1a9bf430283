"""AUTOMATIC1111 stable-diffusion-webui 1.10: the engine's host, its Lora extension and sd-webui-controlnet.

Facts about the host that this file relies on name the file they were read in.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from modules import (
    call_queue,
    devices,
    extensions,
    launch_utils,
    paths_internal,
    scripts,
    sd_models,
    sd_unet,
    shared,
)
from torch import nn

from lib_accel.blocks.operators.operator import Tuned
from lib_accel.graphs.verdicts import folder_or
from lib_accel.hosts.webui_lora import MARK, Merger, wanted_networks
from lib_accel.options import Options

SETTING = "accel_{}"  # name of the setting behind each option

# Where the host defines methods that compute what the replaced ones do, in another order or with less memory.
_EQUIVALENT = {
    "modules.sd_hijack_optimizations",  # attention
    "modules.hypernetworks.hypernetwork",  # attention without an optimization; see attention_reasons
    "modules.sd_unet",  # UNetModel.forward, which asks for a foreign UNet first; see stand_aside_reasons
    "modules.sd_hijack_unet",
    "networks",  # the Lora extension's layers, which only merge weights first; see apply_networks
}

# Where a checkpoint keeps the models that we know.
_PARTS = (
    ("UNet", "model.diffusion_model"),
    ("VAE", "first_stage_model"),
    ("text encoder", "cond_stage_model"),
)
# SDXL's text encoders are here. The webui gives them the older name too (modules/sd_hijack.py).
_CONDITIONER = ("text encoders", "conditioner")


class _Generation(NamedTuple):
    """What one processing object asks for."""

    p: weakref.ref[Any]
    job: float | None  # when the host's job began (modules/shared_state.py)
    is_wanted: bool = True

    def is_alive(self) -> bool:
        return self.p() is not None


class WebuiHost:
    """host.Host for the webui."""

    network_mark: str | None = MARK
    tells_generations = True

    def __init__(self, *, is_off: bool = False) -> None:
        """`is_off`: whether the webui was started with acceleration off, whatever the settings say."""
        self.is_off = is_off
        self.hold_back: str | None = None  # why nothing may be accelerated any more in this process
        self._generations: list[_Generation] = []  # from the outermost to the one that runs
        self._merger = Merger()
        self._is_stocks_turn = False

    @contextlib.contextmanager
    def stocks_turn(self) -> Iterator[None]:
        """Off in the block, for one who has the webui alone. No setting changes, which others might save."""
        self.give_networks_back()
        self._is_stocks_turn = True
        try:
            yield
        finally:
            self._is_stocks_turn = False

    def owns(self, module: nn.Module) -> bool:
        """All of the process: refiners, control models and models of extensions are met at their calls."""
        return True

    def options(self) -> Options:
        """The settings, unless the running generation or the command line says off."""
        running = next((each for each in reversed(self._generations) if each.is_alive()), None)
        wanted = not (self.is_off or self._is_stocks_turn) and (running is None or running.is_wanted)
        saved = {name: _saved(name, default) for name, default in _DEFAULTS.items()}
        return Options(**saved | {"enabled": wanted and saved["enabled"]})

    def begin_generation(self, p: Any) -> bool:
        """Takes note of a processing object, and says whether it is of no other generation's making.

        Extensions generate inside a generation (to repair faces, say), in the same job of the host. What an
        earlier job left behind, however it ended, is forgotten.
        """
        job = getattr(shared.state, "time_start", None)
        self._generations = [each for each in self._generations if each.job == job and each.is_alive()]
        self._generations.append(_Generation(weakref.ref(p), job))
        return len(self._generations) == 1

    def want(self, p: Any, enabled: bool) -> None:
        """Notes whether this generation wants acceleration."""
        self._generations = [
            each._replace(is_wanted=enabled) if each.p() is p else each for each in self._generations
        ]

    def end_generation(self, p: Any) -> None:
        """Forgets a processing object; what is around it counts again."""
        self._generations = [each for each in self._generations if each.p() is not p]

    def stand_aside_reasons(self) -> Sequence[str]:
        """Modes of the host in which blocks do more than their classes say."""
        modes = (
            (
                _setting("lora_functional", False),
                "the setting lora_functional applies LoRA in each layer's forward",
            ),
            (devices.unet_needs_upcast, "--upcast-sampling changes the dtypes of norms"),
            (devices.fp8, "weights are stored in fp8"),
            (hasattr(nn.Linear, "org_forward"), "the webui casts weights at every call (manual cast)"),
            (sd_unet.current_unet is not None, "another extension's UNet is active"),
            (_is_training(), "a hypernetwork or an embedding is being trained"),
        )
        held_back = [] if self.hold_back is None else [self.hold_back]
        return held_back + [reason for applies, reason in modes if applies]

    def attention_reasons(self) -> Sequence[str]:
        """Modes of the host in which attention does more than its class says."""
        modes = (
            (shared.loaded_hypernetworks, "a hypernetwork is active"),
            (_setting("upcast_attn", False), "the setting upcast_attn is on"),
            (
                _setting("hypertile_enable_unet", False)
                or _setting("hypertile_enable_unet_secondpass", False),
                "HyperTile is on",
            ),
        )
        return [reason for applies, reason in modes if applies]

    def trusts(self, method: Callable[..., Any]) -> bool:
        """Whether the host itself replaced a method by one that computes the same."""
        home = getattr(method, "__globals__", {}).get("__name__")
        if home == "modules.sd_hijack_utils":
            parts = _parts_of_condfunc(method)
            return bool(parts) and all(map(self.trusts, parts))
        if home == "hypertile":  # installed once and never removed; passes on while it is off
            inner = getattr(method, "__wrapped__", None)
            return inner is not None and not _is_of_vae(inner) and self.trusts(inner)
        if home in _EQUIVALENT:
            return True
        return home is not None and home.split(".")[0] in ("ldm", "sgm", "torch")

    def wanted_networks(self) -> tuple[Hashable, ...]:
        """The networks that the prompt asks for, and how they are to be merged."""
        networks = sys.modules.get("networks")
        wanted = () if networks is None else wanted_networks(networks)
        return tuple((each, self.options().exact_loras) for each in wanted)

    def apply_networks(self, layers: Sequence[nn.Module], merging: Tuned | None = None) -> None:
        """Merges them, under the Lora extension's own marks and backups."""
        networks = sys.modules.get("networks")
        if networks is not None:
            self._merger.merge(layers, networks, exact=self.options().exact_loras, tuned=merging)

    def give_networks_back(self) -> None:
        """Has the Lora extension merge by itself from now, also what we have merged."""
        networks = sys.modules.get("networks")
        if networks is not None:
            self._merger.give_back(networks)

    def before_call(self, model: nn.Module) -> None:
        """Nothing: the Lora extension has read everything before it lets a model be called."""

    def is_busy(self) -> bool:
        """Whether the webui has a job (modules/shared_state.py), or somebody's turn is not over.

        A checkpoint that is chosen in the page is loaded in a turn of its own, without a job.
        """
        if getattr(shared.state, "job", ""):
            return True
        lock = call_queue.queue_lock
        if lock.acquire(blocking=False):
            lock.release()
            return False
        return True

    def cache_folder(self) -> Path:
        """Beside the webui's own caches (modules/cache.py), or what ACCEL_CACHE_DIR says."""
        return folder_or(Path(paths_internal.data_path, "cache", "accel"))

    def models(self) -> Sequence[tuple[str, nn.Module]]:
        """The parts of the loaded checkpoint, and the control models that sd-webui-controlnet keeps."""
        checkpoint = sd_models.model_data.sd_model
        is_sdxl = isinstance(getattr(checkpoint, "conditioner", None), nn.Module)
        parts = (*_PARTS[:-1], _CONDITIONER) if is_sdxl else _PARTS
        found = [(name, _at(checkpoint, path)) for name, path in parts]
        found += [(f"ControlNet {name}", model) for name, model in _control_models()]
        return [(name, model) for name, model in found if isinstance(model, nn.Module)]


def _at(owner: Any, path: str) -> Any:
    """What is found under these attribute names, one after the other; None if one is missing."""
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return owner


_DEFAULTS = asdict(Options())
_CHOICES = {option.name: option.metadata["choices"] for option in fields(Options)}


def _saved(name: str, default: Any) -> Any:
    """The setting behind an option, in the option's type; the default, if what is saved cannot be that."""
    try:
        value = type(default)(_setting(SETTING.format(name), default))
    except (TypeError, ValueError):
        return default
    if isinstance(default, str):
        return value if value in _CHOICES[name] else default
    return max(value, type(default)(0))


def _setting(name: str, default: Any) -> Any:
    """A setting's value; before the host has registered it, the saved value or else the default."""
    return getattr(shared.opts, name, default)


def _is_training() -> bool:
    return getattr(shared.state, "job", None) in ("train-embedding", "train-hypernetwork")


def _is_of_vae(method: Any) -> bool:
    """Whether HyperTile wraps a VAE's attention, which it does only once that is asked for.

    It may be on or off then. The attention of the UNet is held back while it is on, see attention_reasons.
    """
    return type(getattr(method, "__self__", None)).__name__.endswith("AttnBlock")


def _parts_of_condfunc(method: Any) -> Sequence[Callable[..., Any]]:
    """What a lambda that CondFunc left on a class may call (modules/sd_hijack_utils.py)."""
    for cell in getattr(method, "__closure__", None) or ():
        condition = cell.cell_contents
        if type(condition).__name__ == "CondFunc":
            return condition._CondFunc__orig_func, condition._CondFunc__sub_func
    return ()  # not as we know it


def find_version() -> str:
    """The webui's version, as it stands below its page."""
    return str(launch_utils.git_tag())


def find_extensions() -> list[str]:
    """Names of the extensions that the user installed and did not disable."""
    return [each.name for each in extensions.extensions if each.enabled and not each.is_builtin]


def _control_models() -> Sequence[tuple[str, nn.Module]]:
    for data in scripts.scripts_data:
        if data.script_class.__module__ == "controlnet.py":
            cache = getattr(data.script_class, "model_cache", {})
            models = ((name, getattr(entry, "model", entry)) for name, entry in list(cache.items()))
            return [(str(name), model) for name, model in models if isinstance(model, nn.Module)]
    return ()
