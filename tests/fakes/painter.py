"""A painter without a program: pictures take as long as a test says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from lib_accel.errors import TaskCancelled
from lib_accel.painter import Painted, Wanted


class FakePainter:
    """painter.Painter that keeps what it was asked for."""

    def __init__(self, step_ms: Callable[[bool], float | None] = lambda is_accelerated: 10.0) -> None:
        self._step_ms = step_ms
        self.drawn: list[tuple[str, bool]] = []  # prompt, whether accelerated
        self.wanted: list[Wanted] = []
        self.sessions: list[tuple[str, int]] = []
        self.told: list[str] = []
        self.is_open = False
        self.on_draw: Callable[[], None] = lambda: None
        self.interrupt_at = -1  # number of the picture
        self.interruptions = 0

    @contextlib.contextmanager
    def session(self, name: str, pictures: int, check: Callable[[], None]) -> Iterator[None]:
        check()
        self.sessions.append((name, pictures))
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    def tell(self, stage: str) -> None:
        self.told.append(stage)

    def draw(self, wanted: Wanted, prompt: str = "", *, is_accelerated: bool = True) -> Painted:
        assert self.is_open
        if len(self.drawn) == self.interrupt_at:
            raise TaskCancelled("interrupted by a test")
        self.drawn.append((prompt, is_accelerated))
        self.wanted.append(wanted)
        self.on_draw()
        return Painted(0.5, self._step_ms(is_accelerated))

    @contextlib.contextmanager
    def random_loras(self, count: int) -> Iterator[Sequence[str]]:
        yield [f"<lora:{number}:1>" for number in range(count)]

    def interrupt(self) -> None:
        self.interruptions += 1

    def device(self) -> torch.device:
        return torch.device("cpu")
