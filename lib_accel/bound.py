"""What we know of one live unit or UNet: its steps, whether they still hold, and its networks."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.audit import ClassWatch, Snapshot
from lib_accel.blocks import sample
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
from lib_accel.steps import HostFailure, Step, choose

_CHOSEN_HOST = "the host's own block was measured to be faster"

# Kernels of a unit, below which it takes as long to replay them, with what is copied in and out.
_WORTH_LAUNCHING = 8

_serials = itertools.count()

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)


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
        x = inputs.x
        with call.as_ours():
            for step in self._steps:
                x = step.run(x, inputs.emb, inputs.context, call, weights)
        return x

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
