"""Models under test of the suite of graphs: a UNet with a control model and networks, and ours around it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import diffusers
import torch
from torch import Tensor, nn

from lib_accel.bench.graphs_models import (
    DIFFUSERS,
    VECTOR,
    Place,
    another_checkpoint,
    compvis_unet,
    diffusers_unet,
    drawn,
    home_of,
    randomized,
)
from lib_accel.bench.models import pipeline
from lib_accel.bench.networks import random_network
from lib_accel.bench.plain_host import PlainHost
from lib_accel.choice import Choice
from lib_accel.engine import Engine
from lib_accel.hosts.diffusers import Handle
from lib_accel.options import Options
from lib_accel.report import Report

_SHARE = 0.1  # of the control model's blocks' output, which is added to the UNet's


class Picture(NamedTuple):
    """What a call of the UNet is like in one picture."""

    name: str
    height: int
    width: int
    batch: int = 2
    tokens: int = 77
    control: bool = False
    network: float = 0.0  # weight of a LoRA, or of a change of weights where nothing reads LoRAs
    checkpoint: int = 0


class Subject(Protocol):
    """A UNet in its host's form."""

    odd: tuple[int, int]  # latents of an odd size that its classes can do

    def call(self, picture: Picture) -> Tensor:
        """One call of the UNet as that picture makes it, with its weights."""

    def as_stock(self) -> contextlib.AbstractContextManager[None]:
        """Nothing of ours runs inside the block."""

    def warm_up(self) -> object:
        """Compiles what was asked for."""

    def begin_generation(self) -> None:
        """Puts into effect what was found out."""

    def report(self) -> Report:
        """What runs how."""

    def close(self) -> None:
        """Leaves the models as they had been."""


def subject(package: str, width: str, where: Place, choice: Choice, code: str = "compiled") -> Subject:
    """A model of the package's classes. Raises ImportError if the package is missing."""
    options = Options(code=code)
    if package == DIFFUSERS:
        return _OfDiffusers(width, where, choice, options)
    return _OfCompvis(package, width, where, choice, options)


class _OfDiffusers:
    odd = (17, 13)

    def __init__(self, width: str, where: Place, choice: Choice, options: Options) -> None:
        self._where = where
        unet = diffusers_unet(width, where)
        self._unets = [unet]
        self._pipe = pipeline("sd1")
        self._pipe.register_modules(unet=unet)
        self._handle = Handle(self._pipe, options, choice)
        self.warm_up = self._handle.warm_up
        self.begin_generation = self._handle.begin_generation
        self.report = self._handle.report
        self._worn = 0.0

    @functools.cached_property
    def _network(self) -> dict[str, Tensor]:
        return random_network(self._unets[0], seed=2)

    @functools.cached_property
    def _control(self) -> Any:
        control: Any = diffusers.ControlNetModel.from_unet(self._unets[0])
        control = randomized(control, 5).to(self._where.device, self._where.dtype)
        self._pipe.register_modules(controlnet=control)
        return control

    def call(self, picture: Picture) -> Tensor:
        unet = _checkpoint(self._unets, picture.checkpoint)
        if self._pipe.unet is not unet:
            self._handle.set_loras([])
            self._pipe.register_modules(unet=unet)
            self._worn = 0.0
        if self._worn != picture.network:
            self._handle.set_loras([(self._network, 1.0, picture.network)] if picture.network else [])
            self._worn = picture.network
        x, context = _inputs(picture, self._where, unet.config.cross_attention_dim)
        beside: dict[str, Any] = {"encoder_hidden_states": context, "return_dict": False}
        added: dict[str, Any] = {}
        with torch.no_grad():
            if picture.control:
                hint = drawn(self._where, picture.batch, 3, 8 * picture.height, 8 * picture.width)
                downs, middle = self._control(x, 500, controlnet_cond=hint, **beside)
                added = {
                    "down_block_additional_residuals": [_SHARE * each for each in downs],
                    "mid_block_additional_residual": _SHARE * middle,
                }
            result: Tensor = unet(x, 500, **beside, **added)[0]
        return result

    @contextlib.contextmanager
    def as_stock(self) -> Iterator[None]:
        self._handle.enabled = False
        try:
            yield
        finally:
            self._handle.enabled = True

    def close(self) -> None:
        self._handle.detach()


class _OfCompvis:
    odd = (24, 40)  # of the coarsest level: others do not fit together again when they are doubled

    def __init__(self, package: str, width: str, where: Place, choice: Choice, options: Options) -> None:
        self._home: Any = home_of(package)
        self._where = where
        unet = compvis_unet(package, width, where)
        self._unets = [unet]
        self._has_vector = getattr(unet, "num_classes", None) is not None
        self._changes: dict[int, _Change] = {}
        self._context = _context_width(unet)
        self._engine = Engine(PlainHost(options, self._unets[0]), choice)
        self._engine.attach()
        self.warm_up = self._engine.warm_up
        self.begin_generation = self._engine.begin_generation
        self.report = self._engine.report

    @functools.cached_property
    def _control(self) -> Any:
        return another_checkpoint(self._unets[0], 5)

    def call(self, picture: Picture) -> Tensor:
        unet = _checkpoint(self._unets, picture.checkpoint)
        if picture.network or picture.checkpoint in self._changes:
            if picture.checkpoint not in self._changes:
                self._changes[picture.checkpoint] = _Change(unet)
            self._changes[picture.checkpoint].wear(picture.network)
        x, context = _inputs(picture, self._where, self._context)
        steps = torch.full([picture.batch], 500.0, device=x.device)
        y = drawn(self._where, picture.batch, VECTOR) if self._has_vector else None
        with torch.no_grad(), _numbers(self._where):
            if picture.control:
                return self._controlled(unet, x, steps, context, y)
            result: Tensor = unet(x, steps, context, *(() if y is None else (y,)))
        return result

    def _controlled(self, unet: Any, x: Tensor, steps: Tensor, context: Tensor, y: Any) -> Tensor:
        """As sd-webui-controlnet calls a UNet: block by block, in a loop of its own."""
        added = self._first_half(self._control, x, steps, context, y)[1]
        emb, skips = self._first_half(unet, x, steps, context, y)
        h = skips.pop() + _SHARE * added.pop()
        for block in unet.output_blocks:
            h = block(torch.cat([h, skips.pop() + _SHARE * added.pop()], dim=1), emb, context)
        result: Tensor = unet.out(h)
        return result

    def _first_half(
        self, unet: Any, x: Tensor, steps: Tensor, context: Tensor, y: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """The embedding, and the outputs of all blocks up to the middle."""
        waves = self._home.timestep_embedding(steps, unet.model_channels, repeat_only=False)
        emb = unet.time_embed(waves.to(x.dtype))
        if y is not None:
            emb = emb + unet.label_emb(y)
        outs = [x]
        for block in (*unet.input_blocks, unet.middle_block):
            outs.append(block(outs[-1], emb, context))
        return emb, outs[1:]

    @contextlib.contextmanager
    def as_stock(self) -> Iterator[None]:
        self._engine.detach()
        try:
            yield
        finally:
            self._engine.attach()

    def close(self) -> None:
        self._engine.detach()


def _numbers(where: Place) -> contextlib.AbstractContextManager[None]:
    """Autocast where numbers are half, as webuis have it: the classes' own forward mixes in float32."""
    if where.dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(where.device.type, dtype=where.dtype)


def _checkpoint(unets: list[Any], number: int) -> Any:
    """The UNet of that number; all but the first are made when they are first wanted."""
    while len(unets) <= number:
        unets.append(another_checkpoint(unets[0], len(unets)))
    return unets[number]


class _Change:
    """A change of a model's weights, written in place as webuis do."""

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        self._bases = [(layer.weight, layer.weight.detach().clone()) for layer in layers]
        self._worn = 0.0

    def wear(self, weight: float) -> None:
        if weight != self._worn:
            for value, base in self._bases:
                value.data.copy_(base + weight * 0.1 * base.flip(0))
            self._worn = weight


def _inputs(picture: Picture, where: Place, context: int) -> tuple[Tensor, Tensor]:
    x = drawn(where, picture.batch, 4, picture.height, picture.width)
    return x, drawn(where, picture.batch, picture.tokens, context, seed=2)


def _context_width(unet: nn.Module) -> int:
    """How wide the context is that the cross-attentions read."""
    keys = [module for path, module in unet.named_modules() if path.endswith("attn2.to_k")]
    assert isinstance(keys[0], nn.Linear)
    return keys[0].in_features
