"""One pipeline on which stock diffusers and ours take turns, so that a large model is held but once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lib_accel.bench import adapters
from lib_accel.bench.timing import ACCELERATED, STOCK, Clock, Run, time_ms
from lib_accel.demo.errors import DemoError
from lib_accel.hosts.diffusers import Handle, accelerate

SEED = 20240103


@dataclass(frozen=True)
class Lora:
    """A LoRA for the demo: its name in messages, file or state dict, and scale."""

    name: str
    source: str | Mapping[str, torch.Tensor]
    scale: float


class Stage:
    """A pipeline, what is asked of it, and LoRAs of which it wears the first so many on either side.

    On stock's turn nothing of ours is in place, in no class and no weight; on ours no peft adapter is.
    """

    def __init__(self, pipe: Any, asked: Mapping[str, Any], loras: Sequence[Lora]) -> None:
        self._pipe = pipe
        self._asked = dict(asked)
        self._loras = loras
        self._worn: Sequence[Lora] = ()
        self._side: str | None = None  # whose turn it is; None while the pipeline is as it was given
        self._handle: Handle | None = None
        self.switch_ms: dict[str, float] = {}  # by side, what putting on the LoRAs took last
        self.blocks: dict[str, Any] = {}  # of our latest run: blocks by speed, and reasons

    def wear(self, count: int) -> None:
        """From the next run on, `count` LoRAs; where there are fewer, they are worn several times."""
        self.leave()
        self._worn = [self._loras[number % len(self._loras)] for number in range(count)]

    def run(self, side: str, steps: int, **asked: Any) -> tuple[Run, Any]:
        """One picture on one side: its times, and what the pipeline gave.

        Raises LoraError or DemoError if a LoRA cannot be put on.
        """
        self._turn(side)
        if self._handle is not None:
            self._handle.begin_generation()
        clock = Clock(self._pipe.unet.device)
        result = self._pipe(
            **(self._asked | asked),
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(SEED),
            callback_on_step_end=clock.on_step_end,
        )
        if self._handle is not None:
            done = self._handle.report().as_dict()["generation"]
            self.blocks = {"by_speed": done["blocks"], "reasons": done["reasons"]}
        return clock.run(), result.images

    def leave(self) -> None:
        """Leaves the pipeline as it was given: no adapter, nothing of ours."""
        if self._handle is not None:
            self._handle.detach()
            self._handle = None
        if self._side == STOCK:
            adapters.unload(self._pipe)
        self._side = None

    def _turn(self, side: str) -> None:
        if side == self._side:
            return
        self.leave()
        self._side = side
        change = self._load
        if side == ACCELERATED:
            self._handle = accelerate(self._pipe)
            change = functools.partial(self._fuse, self._handle)
        self.switch_ms[side] = time_ms(change, self._pipe.unet.device)

    def _fuse(self, handle: Handle) -> None:
        handle.set_loras([(lora.source, lora.scale, lora.scale) for lora in self._worn])

    def _load(self) -> None:
        try:
            adapters.load(self._pipe, [(lora.source, lora.scale) for lora in self._worn])
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            names = ", ".join(dict.fromkeys(lora.name for lora in self._worn))
            raise DemoError(
                f"diffusers cannot load {names}, so there is nothing to compare with "
                f"({type(error).__name__}: {_first_line(error)}); leave out what it does not know"
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
