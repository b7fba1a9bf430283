"""host.Host for models of the suite of GPUs: they wear LoRAs, and nobody else does anything to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lib_accel.bench.gpu.networks import Networks
from lib_accel.graphs.verdicts import default_folder
from lib_accel.options import Options

_TRUSTED = ("ldm", "sgm", "torch", "transformers")


class GpuHost:
    """Owns the modules of one container and no others: those of stock, in the same process, are stock's."""

    network_mark: str | None = "accel_bench_networks"  # which nobody sets: nobody else changes weights
    tells_generations = True

    def __init__(self, options: Options, root: nn.ModuleDict, networks: Networks | None) -> None:
        self._options, self._root, self._networks = options, root, networks
        self._own = set(map(id, root.modules()))

    def owns(self, module: nn.Module) -> bool:
        """Whether it is in the container."""
        return id(module) in self._own

    def options(self) -> Options:
        """What it was told."""
        return self._options

    def stand_aside_reasons(self) -> Sequence[str]:
        """None."""
        return ()

    def attention_reasons(self) -> Sequence[str]:
        """None."""
        return ()

    def is_busy(self) -> bool:
        """No: models are called one after the other, on the thread that measures."""
        return False

    def trusts(self, method: Callable[..., Any]) -> bool:
        """Whether it is the packages' own, or the attention that this suite puts in its place."""
        home = str(getattr(method, "__globals__", {}).get("__name__", ""))
        return home.split(".")[0] in _TRUSTED or home == "lib_accel.bench.gpu.attention"

    def wanted_networks(self) -> tuple[int, ...]:
        """The numbers of the LoRAs that are worn."""
        return () if self._networks is None else tuple(range(self._networks.worn))

    def apply_networks(self, layers: Sequence[nn.Module]) -> None:
        """Merges them where that was not done yet."""
        if self._networks is not None:
            self._networks.apply(layers)

    def before_call(self, model: nn.Module) -> None:
        """Nothing is on its way."""

    def cache_folder(self) -> Path:
        """The user's, though choices here are kept nowhere."""
        return default_folder()

    def models(self) -> Sequence[tuple[str, nn.Module]]:
        """Those of the container."""
        return list(self._root.items())
