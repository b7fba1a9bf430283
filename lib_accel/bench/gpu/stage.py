"""The models of a case, what they are called with, and a call of them as a webui makes it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.bench.gpu.controls import control_model, controlled
from lib_accel.bench.gpu.models import FORMS, Where, model_of
from lib_accel.bench.gpu.networks import Networks
from lib_accel.bench.gpu.parts import DRY_PICTURES, DRY_PX, Case
from lib_accel.bench.graphs_models import Place, drawn, sharing

_TOKENS = 77
_MAIN = "model"


class Given(NamedTuple):
    """What a model is called with; `x` is token numbers for a text encoder."""

    x: Tensor
    timesteps: Tensor | None = None
    context: Tensor | None = None
    y: Tensor | None = None
    hint: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """The models of a case by name, the one that is measured first."""

    case: Case
    where: Where
    root: nn.ModuleDict
    given: Given
    networks: Networks | None

    def call(self) -> Tensor:
        """One call, as the host makes it: without gradients, under its autocast."""
        with torch.no_grad(), self._numbers():
            return _CALLS[self.case.model](self.root, self.given)

    def _numbers(self) -> contextlib.AbstractContextManager[None]:
        if not self.where.autocast:
            return contextlib.nullcontext()
        half = self.where.dtype if self.where.dtype != torch.float32 else torch.bfloat16
        return torch.autocast(self.where.device.type, dtype=half)

    def twin(self) -> Stage:
        """Modules of its own over the same weights, so that a side may do to them what it likes."""
        return Stage(self.case, self.where, sharing(self.root), self.given, self.networks)

    def exact(self) -> Stage:
        """A copy of the weights in float32, called without autocast."""
        given = Given._make(
            each.float() if each is not None and each.is_floating_point() else each for each in self.given
        )
        where = self.where._replace(dtype=torch.float32, autocast=False)
        return Stage(self.case, where, copy.deepcopy(self.root).float(), given, None)


@contextlib.contextmanager
def staged(case: Case, where: Where) -> Iterator[Stage]:
    """The models of the case for the block, with its LoRAs worn. Raises ModelError if there are none here."""
    model = model_of(case.model, where)
    controls = {
        f"control{number}": control_model(model, FORMS[case.model].package, 5 + number)
        for number in range(case.controls)
    }
    networks = Networks(model, case.networks) if case.networks else None
    if networks is not None:
        networks.wear(case.networks)
    yield Stage(case, where, nn.ModuleDict({_MAIN: model, **controls}), _given(case, where), networks)
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)


def _given(case: Case, where: Where) -> Given:
    form, at = FORMS[case.model], int(where.is_toy)
    place = Place(where.device, where.dtype, 0)
    pictures = min(case.pictures, DRY_PICTURES) if where.is_toy else case.pictures
    side_px = DRY_PX if where.is_toy else case.side_px
    side = side_px // 8  # of the latents
    if case.model == "text":
        words = form.toy["vocab_size"] if where.is_toy else form.settings["vocab_size"]
        source = torch.Generator().manual_seed(1)
        return Given(torch.randint(words, (2 * pictures, _TOKENS), generator=source).to(where.device))
    if case.model == "vae":
        return Given(drawn(place, pictures, 4, side, side))
    batch = 2 * pictures
    return Given(
        drawn(place, batch, 4, side, side),
        torch.full([batch], 500.0, device=where.device),
        drawn(place, batch, _TOKENS, form.context[at], seed=2),
        drawn(place, batch, form.vector[at], seed=3) if form.vector[at] else None,
        drawn(place, batch, 3, side_px, side_px, seed=4) if case.controls else None,
    )


def _call_unet(root: nn.ModuleDict, given: Given) -> Tensor:
    unet: Any = root[_MAIN]
    controls = [model for name, model in root.items() if name != _MAIN]
    if controls:
        assert given.timesteps is not None
        assert given.context is not None
        assert given.hint is not None
        return controlled(unet, controls, given.x, given.hint, given.timesteps, given.context)
    beside = () if given.y is None else (given.y,)
    result: Tensor = unet(given.x, given.timesteps, given.context, *beside)
    return result


def _call_plain(root: nn.ModuleDict, given: Given) -> Tensor:
    result: Tensor = root[_MAIN](given.x)
    return result


def _call_text(root: nn.ModuleDict, given: Given) -> Tensor:
    result: Tensor = root[_MAIN](input_ids=given.x).last_hidden_state
    return result


_CALLS: Mapping[str, Callable[[nn.ModuleDict, Given], Tensor]] = MappingProxyType(
    {"sd15": _call_unet, "sdxl": _call_unet, "vae": _call_plain, "text": _call_text}
)
