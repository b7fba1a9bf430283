"""How far fused weights are from what each kind's plain formula says, for all kinds in all spellings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib_accel.bench.kinds import KINDS, Draw, Kind
from lib_accel.bench.models import pipeline
from lib_accel.bench.spellings import ROWS, SPELLINGS, Spelling
from lib_accel.lora.formats import LoraError, read_network
from lib_accel.lora.fusion import Fuser, Wanted

TE_SCALE, UNET_SCALE = 0.5, 0.8
_SEED = 7


class Spot(NamedTuple):
    """A layer that a network changes."""

    component: str
    path: str
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Outfit:
    """A network for a model, and the parameters that it should make, in float64 by name."""

    tensors: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]


def kind_figures() -> list[dict[str, Any]]:
    """A row for each kind and spelling: layers fused, and how far their weights are from the formula's.

    `layers` counts weights and biases that were written, `expected` those that the network is for.
    `of_weight` is the difference against the weights, `of_change` the worst layer's against what the network
    changes there; `strays` counts parameters that changed and should not have. A row of a network that the
    library refuses has its words instead.
    """
    pipe = pipeline("sd1")
    models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return [
        {"kind": kind, "spelling": spelling, **_row(models, KINDS[kind], SPELLINGS[spelling])}
        for kind, spellings in ROWS
        for spelling in spellings
    ]


def _row(models: Mapping[str, nn.Module], kind: Kind, spelling: Spelling) -> dict[str, Any]:
    outfit = outfit_of(models, kind, spelling)
    try:
        with _fused(models, outfit) as (before, layers):
            row = compare(before, _parameters(models), outfit.expected)
    except LoraError as error:
        return {"expected": len(outfit.expected), "layers": 0, "refused": str(error)}
    back = _parameters(models)
    same_bits = all(torch.equal(value, back[name]) for name, value in before.items())
    return {"expected": len(outfit.expected), "layers": layers, **row, "restored": same_bits}


@contextlib.contextmanager
def _fused(models: Mapping[str, nn.Module], outfit: Outfit) -> Iterator[tuple[dict[str, Tensor], int]]:
    """The parameters before, and the number of layers written; the weights carry it in the block."""
    before = {name: value.clone() for name, value in _parameters(models).items()}
    fuser = Fuser(models)
    wanted = Wanted(read_network(outfit.tensors, "bench"), TE_SCALE, UNET_SCALE)
    layers = fuser.fuse([wanted]).layers
    try:
        yield before, layers
    finally:
        fuser.restore()


def outfit_of(models: Mapping[str, nn.Module], kind: Kind, spelling: Spelling) -> Outfit:
    """A seeded network of that kind for these models, and what it should make of their weights."""
    draw = Draw(_SEED)
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    spots = [spot for spot in _spots(models, kind) if spelling.text or spot.component == "unet"]
    for component, path, weight, bias in spots:
        made = kind.make(weight, draw)
        if not spelling.has_alpha:
            made.pop("alpha", None)
        if bias is None and kind.of_bias:
            del made[kind.of_bias]
        tensors |= {spelling.key(component, path, role): value for role, value in made.items()}
        scale = UNET_SCALE if component == "unet" else TE_SCALE
        name = f"{component}.{path}"
        given = {role: value if value.dtype == torch.bool else value.double() for role, value in made.items()}
        base = weight.double()
        expected[f"{name}.weight"] = base + scale * (kind.changed(base, given) - base)
        if bias is not None and kind.changed_bias:
            now = kind.changed_bias(bias.double(), given)
            if not torch.equal(now, bias.double()):
                expected[f"{name}.bias"] = bias.double() + scale * (now - bias.double())
    return Outfit(tensors, expected)


def _spots(models: Mapping[str, nn.Module], kind: Kind) -> Iterator[Spot]:
    for component, model in models.items():
        for path, module in model.named_modules():
            if _LAYERS[kind.layers](component, path, module):
                weight, bias = module._parameters["weight"], module._parameters.get("bias")
                assert weight is not None
                yield Spot(component, path, weight.detach(), None if bias is None else bias.detach())


def _is_linear(component: str, path: str, module: nn.Module) -> bool:
    inside = "attentions." in path if component == "unet" else "layers." in path
    return inside and isinstance(module, nn.Linear)


def _is_matrix(component: str, path: str, module: nn.Module) -> bool:
    is_pointwise = "attentions." in path and isinstance(module, nn.Conv2d)
    return is_pointwise or _is_linear(component, path, module)


def _is_kernel(component: str, path: str, module: nn.Module) -> bool:
    return component == "unet" and "resnets." in path and path.endswith(("conv1", "conv2"))


def _is_norm(component: str, path: str, module: nn.Module) -> bool:
    return component == "unet" and "attentions." in path and isinstance(module, (nn.LayerNorm, nn.GroupNorm))


_LAYERS = {"matrices": _is_matrix, "linear": _is_linear, "kernels": _is_kernel, "norms": _is_norm}


def _parameters(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{component}.{name}": value.detach()
        for component, model in models.items()
        for name, value in model.named_parameters()
    }


def compare(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Differences of what is there from what should be; parameters not expected should be as before."""
    far = {name: (after[name].double() - value).norm().item() for name, value in expected.items()}
    moved = {name: (value - before[name].double()).norm().item() for name, value in expected.items()}
    size = sum(value.norm().item() ** 2 for value in expected.values()) ** 0.5
    others = after.keys() - expected.keys()
    return {
        "of_weight": sum(each**2 for each in far.values()) ** 0.5 / size,
        "of_change": max(each / moved[name] for name, each in far.items()),
        "strays": sum(not torch.equal(after[name], before[name]) for name in others),
    }
