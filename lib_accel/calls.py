"""What belongs to one call of a model: the host's state that its blocks share, and the thread it runs on."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.blocks.operators.operator import Arguments, Tuned
from lib_accel.blocks.rules import Rules, rules_for
from lib_accel.choice import Choice
from lib_accel.device import SUPPORTED_DEVICES, autocast_dtype, autocast_off, autocast_on
from lib_accel.graphs.launch import Terms


class ModelCall(NamedTuple):
    """What the blocks of one call of a UNet or control model share (steps.Call)."""

    rules: Rules
    attention_reason: str | None
    stand_aside: tuple[str, ...]  # why this call stays with the host altogether
    device_type: str
    autocast: torch.dtype | None
    networks: tuple[Hashable, ...] = ()  # that the weights should carry (host.Host.wanted_networks)
    merging: Tuned | None = None  # what merges them, None for plain torch
    choice: Choice | None = None  # None where direct code is all there is
    is_forced: bool = False  # whether compiled code is asked for, be it faster or not
    may_prove: bool = True  # whether graphs may be proved in it
    note_residual: Callable[[Arguments], None] | None = None  # hears of residual blocks, to lay their weights
    note_attention: Callable[[Arguments], None] | None = None  # likewise of attention parts
    launch: Terms | None = None  # on which it, or else its units, may be replayed as recordings

    def without_proofs(self) -> ModelCall:
        """The same call where nothing may wait for the device."""
        return self._replace(may_prove=False)

    def as_host(self) -> AbstractContextManager[None]:
        """Autocast as the host set it."""
        return nullcontext() if self.autocast is None else autocast_on(self.device_type, self.autocast)

    def as_ours(self) -> AbstractContextManager[None]:
        """Autocast off, for functions that follow `rules`."""
        return nullcontext() if self.autocast is None else autocast_off(self.device_type)


def new_call(
    x: Tensor,
    stand_aside: Sequence[str],
    attention_reasons: Sequence[str],
    networks: tuple[Hashable, ...] = (),
) -> ModelCall:
    """The state of the current thread and of the host, as a call with the input `x` finds it."""
    device_type = x.device.type
    reasons = list(stand_aside)
    if torch.is_grad_enabled():
        reasons.append("gradients are on, as in training")
    if device_type not in SUPPORTED_DEVICES:
        reasons.append(f"the device is {device_type}, supported are {' and '.join(SUPPORTED_DEVICES)}")
        return ModelCall(Rules(), None, tuple(reasons), device_type, None, ())
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        reasons.append("a global forward hook is set")
    autocast = autocast_dtype(device_type)
    attention_reason = "; ".join(attention_reasons) or None
    rules = rules_for(device_type, autocast)
    return ModelCall(rules, attention_reason, tuple(reasons), device_type, autocast, networks)


class Thread(threading.local):
    """The call of a model on this thread: the one that runs, or else the latest.

    The latest is known by its embedding, which is held weakly, as it lives no longer.
    """

    # Whose units are run by themselves: nothing is asked, counted or merged, and nobody takes over.
    recorded: ModelCall | None = None
    _running: ModelCall | None = None
    _emb: weakref.ref[Any] | None = None
    _call: ModelCall | None = None

    @contextlib.contextmanager
    def inside(self, call: ModelCall) -> Iterator[None]:
        """All units that are called in the block belong to this call."""
        before, self._running = self._running, call
        try:
            yield
        finally:
            self._running = before

    @contextlib.contextmanager
    def recording(self, call: ModelCall) -> Iterator[None]:
        """As `inside`, for a call that is about to be recorded, all of whose units are known to be ours."""
        before, self.recorded = self.recorded, call.without_proofs()
        try:
            yield
        finally:
            self.recorded = before

    def call_with(self, emb: Any) -> ModelCall | None:
        """The call that runs, or the latest if its blocks got this embedding."""
        if self._running is not None:
            return self._running
        return self._call if emb is not None and self._emb is not None and self._emb() is emb else None

    def remember(self, emb: Any, call: ModelCall) -> None:
        """This call's blocks get this embedding."""
        self._emb = weakref.ref(emb) if isinstance(emb, Tensor) else None
        self._call = call
