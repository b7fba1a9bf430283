"""host.Host for models of the suites that nobody else does anything to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lib_accel.graphs.verdicts import default_folder
from lib_accel.options import Options


class PlainHost:
    """Wants what it was told, and owns all modules."""

    network_mark: str | None = None
    tells_generations = True

    def __init__(self, options: Options, *models: nn.Module) -> None:
        self._options, self._models = options, models

    def owns(self, module: nn.Module) -> bool:
        """All of them."""
        return True

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
        """No: pictures are called one after the other, on the thread that measures."""
        return False

    def trusts(self, method: Callable[..., Any]) -> bool:
        """Whether it is the packages' own."""
        home = getattr(method, "__globals__", {}).get("__name__", "")
        return home.split(".")[0] in ("ldm", "sgm", "torch")

    def wanted_networks(self) -> tuple[Hashable, ...]:
        """None."""
        return ()

    def apply_networks(self, layers: Sequence[nn.Module], merging: Any = None) -> None:
        """Nothing is wanted."""

    def before_call(self, model: nn.Module) -> None:
        """Nothing is on its way."""

    def cache_folder(self) -> Path:
        """The user's, though choices here are kept nowhere."""
        return default_folder()

    def models(self) -> Sequence[tuple[str, nn.Module]]:
        """Those that it was told of."""
        return [("UNet", model) for model in self._models]
