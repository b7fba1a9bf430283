"""Operations around an engine of the tests, with a painter that draws nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lib_accel.engine import Engine
from lib_accel.operations import Operations
from lib_accel.pictures import Pictures
from tests.fakes.host import FakeHost
from tests.fakes.painter import FakePainter


class FakeNetworks:
    """operations.Networks with public fields."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, float, float]] = []
        self.size = 0

    def merged(self) -> Iterable[tuple[str, float, float]]:
        return self.loaded

    def kept_bytes(self) -> int:
        return self.size


class FakeOperations(Operations):
    """Operations, with what they were made of as public fields."""

    def __init__(self, folder: Path, host: FakeHost | None = None, engine: Engine | None = None) -> None:
        self.host = host or FakeHost()
        self.host.folder = folder
        self.engine = engine or Engine(self.host)
        self.painter, self.networks, self.pictures = FakePainter(), FakeNetworks(), Pictures()
        surroundings = {"program": "a fake"}
        super().__init__(
            self.engine,
            self.host,
            painter=self.painter,
            networks=self.networks,
            pictures=self.pictures,
            surroundings=lambda: surroundings,
        )
