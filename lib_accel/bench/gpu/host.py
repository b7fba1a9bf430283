"""host.Host for models of the suite of GPUs: they wear LoRAs, and nobody else does anything to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lib_accel.bench.gpu.networks import Networks
from lib_accel.bench.plain_host import PlainHost
from lib_accel.graphs.verdicts import default_folder
from lib_accel.options import Options

_TRUSTED = ("ldm", "sgm", "torch", "transformers")


class GpuHost(PlainHost):
    """Owns the modules of one container and no others: those of stock, in the same process, are stock's."""

    network_mark: str | None = "accel_bench_networks"  # which nobody sets: nobody else changes weights

    def __init__(self, options: Options, root: nn.ModuleDict, networks: Networks | None) -> None:
        super().__init__(options)
        self._root, self._networks = root, networks
        self._own = set(map(id, root.modules()))

    def owns(self, module: nn.Module) -> bool:
        """Whether it is in the container."""
        return id(module) in self._own

    def trusts(self, method: Callable[..., Any]) -> bool:
        """Whether it is the packages' own, or the attention that this suite puts in its place."""
        home = str(getattr(method, "__globals__", {}).get("__name__", ""))
        return home.split(".")[0] in _TRUSTED or home == "lib_accel.bench.gpu.attention"

    def cache_folder(self) -> Path:
        """One of this suite: what is measured here is found again by the next row, and by nobody else."""
        return default_folder() / "bench-gpu"

    def wanted_networks(self) -> tuple[int, ...]:
        """The numbers of the LoRAs that are worn."""
        return () if self._networks is None else tuple(range(self._networks.worn))

    def apply_networks(self, layers: Sequence[nn.Module], merging: Any = None) -> None:
        """Merges them where that was not done yet."""
        if self._networks is not None:
            self._networks.apply(layers)

    def models(self) -> Sequence[tuple[str, nn.Module]]:
        """Those of the container."""
        return list(self._root.items())
