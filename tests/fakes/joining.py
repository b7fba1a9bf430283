"""An engine whose output blocks join h and its skip, by what computes as plain torch does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lib_accel.blocks.operators.joined_norm import JOINED_NORM
from lib_accel.engine import Engine
from lib_accel.options import Options
from tests.fakes.host import FakeHost
from tests.fakes.lora import FakeLora
from tests.fakes.models import difference, inputs, run, tiny_unet
from tests.fakes.tuning import FakeTuner, Taking

LIMIT = 1e-5  # relative L2, float32
JOINS = 4  # output blocks of the tiny UNets


class Joining(Taking):
    """Takes for two images what computes as plain torch does, and counts."""

    def __init__(self) -> None:
        super().__init__(JOINED_NORM.name, self._join)
        self.count = 0

    def _join(self, *args: Any) -> tuple[Tensor, Tensor]:
        self.count += 1
        return JOINED_NORM.plain(*args)


class Stage:
    """An engine that joins, and one UNet."""

    def __init__(self, unet: Any = None, lora: FakeLora | None = None, *, vector: bool = False) -> None:
        self.host, self.joining, self.unet = FakeHost(lora), Joining(), unet or tiny_unet()
        self.tuner = FakeTuner(self.joining)
        self.engine = Engine(self.host, tuner=self.tuner)  # type: ignore[arg-type]
        self.vector = vector

    @classmethod
    @contextlib.contextmanager
    def opened(cls, *args: Any, **kwargs: Any) -> Iterator[Stage]:
        """Its engine attached for the block."""
        stage = cls(*args, **kwargs)
        stage.engine.attach()
        try:
            yield stage
        finally:
            stage.engine.detach()

    def draw(self, taking: Taking | None = None, **options: Any) -> Tensor:
        """A picture of one call; taking: something else for this one."""
        self.tuner.taking = taking or self.joining
        self.host.asked = Options(launch="eager", **options)
        self.engine.begin_generation()
        return run(self.unet, inputs(vector=self.vector))

    def stock(self) -> Tensor:
        """What the host makes of it by itself."""
        with self.host.switched_off():
            return run(self.unet, inputs(vector=self.vector))

    def joins(self, **options: Any) -> int:
        """How many output blocks join in one picture, which is right."""
        before, stock = self.joining.count, self.stock()
        assert difference(self.draw(**options), stock) <= LIMIT
        return self.joining.count - before
