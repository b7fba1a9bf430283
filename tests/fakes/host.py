"""A host whose every answer a test can set, and an engine attached to it for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lib_accel.engine import Engine
from lib_accel.options import Options
from tests.fakes.lora import FakeLora


class FakeHost:
    """host.Host with public fields."""

    def __init__(self, lora: FakeLora | None = None) -> None:
        self.network_mark = None if lora is None else "network_current_names"
        self.lora = lora
        self.asked = Options()
        self.stand_aside: list[str] = []
        self.attention: list[str] = []
        self.trusted: list[Callable[..., Any]] = []
        self.live: list[tuple[str, nn.Module]] = []
        self.tells_generations = True
        self.busy = False
        self.folder: Path | None = None  # None: nothing is kept
        self.called: list[str] = []  # classes of whole models, as before_call met them

    def owns(self, module: nn.Module) -> bool:
        return True

    def options(self) -> Options:
        return self.asked

    def stand_aside_reasons(self) -> Sequence[str]:
        return self.stand_aside

    def attention_reasons(self) -> Sequence[str]:
        return self.attention

    def trusts(self, method: Callable[..., Any]) -> bool:
        home = getattr(method, "__globals__", {}).get("__name__", "")
        return method in self.trusted or home.split(".")[0] in ("ldm", "sgm", "torch") or home == FAKE_LORA

    def wanted_networks(self) -> Hashable:
        return () if self.lora is None else self.lora.wanted()

    def apply_networks(self, layers: Sequence[nn.Module], merging: Any = None) -> None:
        for layer in layers:
            if self.lora is not None:
                self.lora.network_apply_weights(layer)

    def before_call(self, model: nn.Module) -> None:
        self.called.append(type(model).__name__)

    def is_busy(self) -> bool:
        return self.busy

    def cache_folder(self) -> Path | None:
        return self.folder

    def models(self) -> Sequence[tuple[str, nn.Module]]:
        return self.live

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """As if the user had turned acceleration off for the block."""
        before, self.asked = self.asked, Options(enabled=False)
        try:
            yield
        finally:
            self.asked = before


FAKE_LORA = FakeLora.__module__


@contextlib.contextmanager
def attached(host: FakeHost | None = None) -> Iterator[Engine]:
    """A new engine, attached for the block."""
    engine = Engine(host or FakeHost())
    engine.attach()
    try:
        yield engine
    finally:
        engine.detach()
