"""What we know of one live unit or UNet: its steps, whether they still hold, and its networks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.audit import ClassWatch, Snapshot
from lib_accel.blocks import sample
from lib_accel.blocks.rules import Rules, rules_for
from lib_accel.choice import Choice
from lib_accel.device import SUPPORTED_DEVICES, autocast_dtype, autocast_off, autocast_on
from lib_accel.errors import LayoutError
from lib_accel.graphs.proof import COMPILED, HOST
from lib_accel.host import Host
from lib_accel.layouts import compvis
from lib_accel.layouts.compvis import Family
from lib_accel.layouts.entries import Inputs, Unit
from lib_accel.layouts.reading import Trust
from lib_accel.layouts.slots import LiveWeights
from lib_accel.report import Generation, Tally
from lib_accel.steps import HostFailure, Step, choose

_CHOSEN_HOST = "the host's own block was measured to be faster"

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)


class ModelCall(NamedTuple):
    """What the blocks of one call of a UNet or control model share (steps.Call)."""

    rules: Rules
    attention_reason: str | None
    stand_aside: tuple[str, ...]  # why this call stays with the host altogether
    device_type: str
    autocast: torch.dtype | None
    networks: tuple[Hashable, ...] = ()  # that the weights should carry (host.Host.wanted_networks)
    choice: Choice | None = None  # None where direct code is all there is
    is_forced: bool = False  # whether compiled code is asked for, be it faster or not

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


class NetworkState:
    """Whether the layers of a block carry the networks (LoRA and its kin) that the host wants."""

    __slots__ = ("_dicts", "_layers", "_mark", "_marks", "_wanted")

    def __init__(self, modules: Sequence[nn.Module], mark: str | None) -> None:
        # The host merges the last layer of an nn.MultiheadAttention with the attention; once more were twice.
        merged = {id(m.out_proj) for m in modules if isinstance(m, nn.MultiheadAttention)}
        self._layers = [m for m in modules if isinstance(m, _WEIGHTED) and id(m) not in merged]
        self._dicts = [layer.__dict__ for layer in self._layers]
        self._mark = mark
        self._wanted: tuple[Hashable, ...] | None = None
        self._marks: list[Any] = []

    def ensure(self, host: Host, wanted: tuple[Hashable, ...], generation: Generation) -> None:
        """Has the host merge what it wants into the layers, if that or a layer's mark changed."""
        if self._mark is None:
            return
        if wanted == self._wanted and self._current_marks() == self._marks:
            return
        began = time.perf_counter()
        self._wanted = None
        host.apply_networks(self._layers)
        self._wanted, self._marks = wanted, self._current_marks()
        generation.fuse_s += time.perf_counter() - began
        generation.networks = len(wanted)

    def _current_marks(self) -> list[Any]:
        mark: Any = self._mark
        return [attributes.get(mark) for attributes in self._dicts]


class BoundUnit:
    """A unit's live module and the steps that it runs."""

    def __init__(
        self, module: nn.Module, unit: Unit, trust: Trust, mark: str | None, watch: ClassWatch
    ) -> None:
        descendants = list(module.modules())[1:]
        self._snapshot = Snapshot(descendants, module, watch)
        self.networks = NetworkState(descendants, mark)
        self.failure: str | None = None
        self._steps: list[Step] = []
        self._size = 1
        try:
            candidates = unit.candidates(module, trust)
            self._size = len(candidates)
            self._steps, slots = choose(candidates)
            self._weights = LiveWeights(slots)
        except (LayoutError, AttributeError) as error:
            self.failure = str(error)
        self._tallies: dict[str | None, Tally] = {}

    def holds(self) -> bool:
        """Whether the module is still what was bound."""
        return self._snapshot.matches()

    def run(self, inputs: Inputs, call: ModelCall) -> Tensor:
        """The unit's output, of new memory."""
        weights = self._weights.read()
        x = inputs.x
        with call.as_ours():
            for step in self._steps:
                x = step.run(x, inputs.emb, inputs.context, call, weights)
        return x

    def count(self, tally: Tally, attention_reason: str | None) -> None:
        """Adds the unit's blocks to a tally; `attention_reason` holds attention back unless None."""
        if any(step.chosen is not None for step in self._steps):
            self._count_steps(tally, attention_reason)
            return
        if attention_reason not in self._tallies:
            own = self._tallies[attention_reason] = Tally()
            if self.failure is not None:
                self.count_as_host(own, [self.failure])
            self._count_steps(own, attention_reason)
        tally.add_all(self._tallies[attention_reason])

    def _count_steps(self, tally: Tally, attention_reason: str | None) -> None:
        for step in self._steps:
            reasons = [_CHOSEN_HOST] if step.chosen == HOST else step.reasons(attention_reason)
            tally.add(reasons, is_compiled=step.chosen == COMPILED)

    def count_as_host(self, tally: Tally, reasons: Sequence[str]) -> None:
        """Adds the unit's blocks to a tally, all at host speed for these reasons."""
        for _ in range(self._size):
            tally.add(list(reasons))


class BoundUNet:
    """A UNetModel's own layers: embeddings before its blocks, norm and convolution after them."""

    def __init__(self, unet: Any, names: Family, trust: Trust, mark: str | None, watch: ClassWatch) -> None:
        tops = [unet.time_embed, unet.out]
        if unet.num_classes is not None:
            tops.append(unet.label_emb)
        modules = [module for top in tops for module in top.modules()]
        self._snapshot = Snapshot(modules, unet, watch)
        self.networks = NetworkState(modules, mark)
        self._casts_input = names.unet_casts_input
        self.failure: str | None = None
        self._label: LiveWeights | None = None
        try:
            self._read(unet, names, trust)
        except (LayoutError, AttributeError) as error:
            self.failure = str(error)

    def _read(self, unet: Any, names: Family, trust: Trust) -> None:
        if getattr(unet, "predict_codebook_ids", False):
            raise LayoutError("the UNet predicts codebook ids")
        time = compvis.read_embedding(unet.time_embed, names, trust)
        out = compvis.read_out(unet.out, names, trust)
        self._time, self._out, self._out_spec = LiveWeights(time.slots), LiveWeights(out.slots), out.spec
        if unet.num_classes is not None:
            self._label = LiveWeights(compvis.read_embedding(unet.label_emb, names, trust).slots)

    def holds(self) -> bool:
        """Whether the layers are still what was bound."""
        return self._snapshot.matches()

    def takes(self, x: Tensor, y: Tensor | None) -> bool:
        """Whether the UNet's own code would accept this vector, or the lack of one."""
        return (y is None) == (self._label is None) and (y is None or len(y) == len(x))

    def embed(self, unet: Any, timesteps: Tensor, y: Tensor | None, call: ModelCall) -> Tensor:
        """The embedding that all blocks of one call share, of timesteps and, for SDXL, the vector `y`."""
        home: Any = sys.modules[type(unet).__module__]
        steps = home.timestep_embedding(timesteps, unet.model_channels, repeat_only=False)
        with call.as_ours():
            emb = sample.embed(steps, sample.EmbeddingWeights(*self._time.read()), None, call.rules)
            if self._label is not None and y is not None:
                emb = emb + sample.embed(y, sample.EmbeddingWeights(*self._label.read()), None, call.rules)
        return emb

    def run(self, unet: Any, x: Tensor, emb: Tensor, context: Any, call: ModelCall) -> Tensor:
        """The UNet's output; its blocks are called as modules, so whatever hangs on them still happens."""
        home: Any = sys.modules[type(unet).__module__]
        h = x.to(unet.dtype) if self._casts_input else x
        try:
            h = _walk(unet, h, emb, context, home.th.cat)
        except Exception as error:
            raise HostFailure(error) from None
        with call.as_ours():
            weights = sample.OutWeights(*self._out.read())
            return sample.out_convolution(h.to(x.dtype), weights, self._out_spec, call.rules)


def _walk(unet: Any, h: Tensor, emb: Tensor, context: Any, cat: Callable[..., Tensor]) -> Tensor:
    """All blocks of a UNet with their skips; `cat` is the host's, which makes odd sizes fit."""
    skips = []
    for block in unet.input_blocks:
        h = block(h, emb, context)
        skips.append(h)
    h = unet.middle_block(h, emb, context)
    for block in unet.output_blocks:
        h = block(cat([h, skips.pop()], dim=1), emb, context)
    return h
