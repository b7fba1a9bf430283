"""What we know of one live unit or UNet: its steps, whether they still hold, and its networks."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.audit import ClassWatch, Snapshot
from lib_accel.blocks import joined, sample
from lib_accel.blocks.operators.operator import Tuned
from lib_accel.blocks.pieces import SCARCE
from lib_accel.calls import ModelCall
from lib_accel.errors import LayoutError
from lib_accel.graphs.proof import COMPILED, HOST
from lib_accel.host import Host
from lib_accel.layouts import compvis
from lib_accel.layouts.compvis import Family
from lib_accel.layouts.entries import Inputs, Unit
from lib_accel.layouts.reading import Trust
from lib_accel.layouts.slots import LiveWeights
from lib_accel.report import Generation, Tally
from lib_accel.steps import HostFailure, Residual, Step, choose

_CHOSEN_HOST = "the host's own block was measured to be faster"

# Kernels of a unit, below which it takes as long to replay them, with what is copied in and out.
_WORTH_LAUNCHING = 8

_serials = itertools.count()

# Runs a block on h and its skip, which it joins by itself, and on embedding and context; None if it does not.
Join = Callable[[nn.Module, Tensor, Tensor, Any, Any], Tensor | None]

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)


class NetworkState:
    """Whether the layers of a block carry the networks (LoRA and its kin) that the host wants."""

    __slots__ = ("_dicts", "_layers", "_mark", "_marks", "_merging", "_wanted")

    def __init__(self, modules: Sequence[nn.Module], mark: str | None) -> None:
        # The host merges the last layer of an nn.MultiheadAttention with the attention; once more were twice.
        merged = {id(m.out_proj) for m in modules if isinstance(m, nn.MultiheadAttention)}
        self._layers = [m for m in modules if isinstance(m, _WEIGHTED) and id(m) not in merged]
        self._dicts = [layer.__dict__ for layer in self._layers]
        self._mark = mark
        self._wanted: tuple[Hashable, ...] | None = None
        self._merging: Tuned | None = None
        self._marks: list[Any] = []

    def ensure(self, host: Host, call: ModelCall, generation: Generation) -> None:
        """Has the host merge what the call wants into the layers, if that or a layer's mark changed."""
        ensure_all([self], host, call, generation)

    def carries(self, call: ModelCall) -> bool:
        """Whether the layers are known to carry what the call wants, merged as was chosen."""
        return self._mark is None or (
            call.networks == self._wanted
            and call.merging is self._merging
            and self._current_marks() == self._marks
        )

    def _current_marks(self) -> list[Any]:
        mark: Any = self._mark
        return [attributes.get(mark) for attributes in self._dicts]


def ensure_all(states: Sequence[NetworkState], host: Host, call: ModelCall, generation: Generation) -> None:
    """Has the host merge at once into the layers of all that do not carry what the call wants."""
    changed = [state for state in states if not state.carries(call)]
    if not changed:
        return
    began = time.perf_counter()
    for state in changed:
        state._wanted = None
    host.apply_networks([layer for state in changed for layer in state._layers], call.merging)
    for state in changed:
        state._wanted, state._merging, state._marks = call.networks, call.merging, state._current_marks()
    generation.fuse_s += time.perf_counter() - began
    generation.networks = len(call.networks)


class BoundUnit:
    """A unit's live module and the steps that it runs."""

    def __init__(
        self, module: nn.Module, unit: Unit, trust: Trust, mark: str | None, watch: ClassWatch
    ) -> None:
        descendants = list(module.modules())[1:]
        self._snapshot = Snapshot(descendants, module, watch)
        self.networks = NetworkState(descendants, mark)
        self.failure: str | None = None
        self.serial = next(_serials)  # another one for whatever is bound anew
        self._steps: list[Step] = []
        self.size = 1
        try:
            candidates = unit.candidates(module, trust)
            self.size = len(candidates)
            self._steps, slots = choose(candidates)
            self._weights = LiveWeights(slots)
        except (LayoutError, AttributeError) as error:
            self.failure = str(error)
        # Whether it has so many kernels that to launch them at one blow gains anything.
        self.is_worth_launching = sum(step.kernels for step in self._steps) >= _WORTH_LAUNCHING
        self._tallies: dict[str | None, Tally] = {}
        self._is_ours: dict[str | None, bool] = {}

    def holds(self) -> bool:
        """Whether the module is still what was bound."""
        return self._snapshot.matches()

    def run(self, inputs: Inputs, call: ModelCall) -> Tensor:
        """The unit's output, of new memory."""
        weights = self.weights()
        x, steps = inputs.x, iter(self._steps)
        with call.as_ours():
            if inputs.skip is not None:
                first: Any = next(steps)  # a Residual; see joins
                x = first.run_joined((x, inputs.skip), inputs.emb, call, weights)
            for step in steps:
                x = step.run(x, inputs.emb, inputs.context, call, weights)
        return x

    def run_in_pieces(self, inputs: Inputs, call: ModelCall) -> Tensor:
        """The same, by direct code that makes nothing large at once, as far as pieces go."""
        rules = call.rules._replace(pieces=SCARCE)
        alone = call._replace(rules=rules, choice=None, note_residual=None, note_attention=None)
        return self.run(inputs, alone)

    @property
    def begins_with_residual(self) -> bool:
        """Whether its first block is a residual one of ours."""
        return bool(self._steps) and isinstance(self._steps[0], Residual)

    def joins(self, x: Tensor, skip: Tensor, call: ModelCall) -> bool:
        """Whether it is better run on these two than on the image that they make side by side."""
        if not self.begins_with_residual or not joined.fit(x, skip):
            return False
        first: Any = self._steps[0]
        return bool(first.is_worth_joining((x, skip), call, self.weights()))

    def weights(self) -> Sequence[Any]:
        """All that its steps read besides their inputs, as it is now."""
        return self._weights.read()

    def is_ours(self, attention_reason: str | None) -> bool:
        """Whether no live module of the host's is among its steps."""
        if self.failure is not None or any(step.chosen == HOST for step in self._steps):
            return False
        if attention_reason not in self._is_ours:
            reasons = [step.reasons(attention_reason) for step in self._steps]
            self._is_ours[attention_reason] = not any(reasons)
        return self._is_ours[attention_reason]

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
        for _ in range(self.size):
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
        self.serial = next(_serials)
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

    def weights(self) -> Sequence[Any]:
        """All that `embed` and `run` read besides their inputs, as it is now."""
        parts = (self._time, self._out) if self._label is None else (self._time, self._out, self._label)
        return [weight for part in parts for weight in part.read()]

    def joins_plainly(self, unet: Any, trust: Trust) -> bool:
        """Whether skips are joined by the host's function, which others may replace to do more."""
        cat = sys.modules[type(unet).__module__].th.cat
        return cat is torch.cat or trust(getattr(cat, "__func__", cat))

    def may_join(self, unet: Any, trust: Trust, call: ModelCall) -> bool:
        """Whether blocks may join skips themselves: the host's function does no more for equal sizes."""
        is_torchs = isinstance(torch.cat, BuiltinFunctionType)  # what the host's calls
        return call.rules.tuned is not None and is_torchs and self.joins_plainly(unet, trust)

    def waves(self, unet: Any, timesteps: Tensor) -> Tensor:
        """What the host embeds timesteps as, (batch, channels); its function may wait for the device."""
        home: Any = sys.modules[type(unet).__module__]
        result: Tensor = home.timestep_embedding(timesteps, unet.model_channels, repeat_only=False)
        return result

    def embed(self, waves: Tensor, y: Tensor | None, call: ModelCall) -> Tensor:
        """The embedding that all blocks of one call share, of timesteps and, for SDXL, the vector `y`."""
        with call.as_ours():
            emb = sample.embed(waves, sample.EmbeddingWeights(*self._time.read()), None, call.rules)
            if self._label is not None and y is not None:
                emb = emb + sample.embed(y, sample.EmbeddingWeights(*self._label.read()), None, call.rules)
        return emb

    def run(
        self, unet: Any, x: Tensor, emb: Tensor, context: Any, call: ModelCall, join: Join | None = None
    ) -> Tensor:
        """The UNet's output; its blocks are called as modules, so whatever hangs on them still happens.

        join: is asked first where a block begins with a skip.
        """
        home: Any = sys.modules[type(unet).__module__]
        h = x.to(unet.dtype) if self._casts_input else x
        try:
            h = _walk(unet, h, emb, context, home.th.cat, join)
        except Exception as error:
            raise HostFailure(error) from None
        with call.as_ours():
            weights = sample.OutWeights(*self._out.read())
            return sample.out_convolution(h.to(x.dtype), weights, self._out_spec, call.rules)


def _walk(
    unet: Any, h: Tensor, emb: Tensor, context: Any, cat: Callable[..., Tensor], join: Join | None
) -> Tensor:
    """All blocks of a UNet with their skips; `cat` is the host's, which makes odd sizes fit."""
    skips = []
    for block in unet.input_blocks:
        h = block(h, emb, context)
        skips.append(h)
    h = unet.middle_block(h, emb, context)
    for block in unet.output_blocks:
        result = None if join is None else join(block, h, skips[-1], emb, context)
        if result is None:
            h = block(cat([h, skips.pop()], dim=1), emb, context)
        else:
            h = result
            skips.pop()
    return h
