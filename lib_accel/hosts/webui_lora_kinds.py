"""The modules of the webui's Lora extension whose changes we compute: LoRA, LoHa and LoKr."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib_accel.lora.delta import cp_product, for_inpainting, loha, lokr, needs_inpainting, tucker_down
from lib_accel.lora.terms import Dense, Factors, Term


class Kind(NamedTuple):
    """What a module of the extension holds, and what it changes."""

    tensors: Callable[[Any], list[Tensor]]
    term: Callable[[Any, Tensor], Term]  # of the module and the weight that it changes


def _strength(module: Any) -> float:
    return float(module.calc_scale() * module.multiplier())


def _lora_tensors(module: Any) -> list[Tensor]:
    parts = (module.up_model, module.down_model, module.mid_model)
    return [part.weight for part in parts if part is not None]


def _lora(module: Any, weight: Tensor) -> Term:
    up, down, *mid = (tensor.to(weight.device) for tensor in _lora_tensors(module))
    dimensions = module.network.dyn_dim
    if mid:
        down = tucker_down(mid[0], down)
    elif dimensions is not None:
        up, down = up[:, :dimensions], down[:dimensions]
    if down.ndim == 4 and needs_inpainting((len(up), *down.shape[1:]), weight.shape):
        down = for_inpainting(down)
    up, down = up.flatten(1), down.flatten(1)
    if (len(up), len(up) * down.shape[1]) != (len(weight), weight.numel()):
        raise RuntimeError("the factors are for another weight")
    return Factors(up, down, _strength(module))


_LOHA = ("w1a", "w1b", "w2a", "w2b", "t1", "t2")
_LOKR = ("w1", "w1a", "w1b", "w2", "w2a", "w2b", "t2")


def _tensors(names: Sequence[str], module: Any) -> list[Tensor]:
    return [getattr(module, name) for name in names if getattr(module, name) is not None]


def _on(device: torch.device, names: Sequence[str], module: Any) -> list[Tensor | None]:
    values = [getattr(module, name) for name in names]
    return [None if value is None else value.to(device) for value in values]


def _loha(module: Any, weight: Tensor) -> Term:
    w1a, w1b, w2a, w2b, t1, t2 = _on(weight.device, _LOHA, module)
    assert w1a is not None
    assert w1b is not None
    assert w2a is not None
    assert w2b is not None
    return Dense(loha(w1a, w1b, w2a, w2b, t1, t2).reshape(weight.shape), _strength(module))


def _lokr(module: Any, weight: Tensor) -> Term:
    w1, w1a, w1b, w2, w2a, w2b, t2 = _on(weight.device, _LOKR, module)
    left = _product(w1, w1a, w1b, None)
    return Dense(lokr(left, _product(w2, w2a, w2b, t2)).reshape(weight.shape), _strength(module))


def _product(whole: Tensor | None, a: Tensor | None, b: Tensor | None, mid: Tensor | None) -> Tensor:
    """A factor of LoKr, which is there as it is or as a product of two, or of three."""
    if whole is not None:
        return whole
    assert a is not None
    assert b is not None
    return a.float() @ b.float() if mid is None else cp_product(mid, a, b)


# Those of network_lora.py, network_hada.py and network_lokr.py, by class.
KINDS: Mapping[str, Kind] = {
    "network_lora.NetworkModuleLora": Kind(_lora_tensors, _lora),
    "network_hada.NetworkModuleHada": Kind(partial(_tensors, _LOHA), _loha),
    "network_lokr.NetworkModuleLokr": Kind(partial(_tensors, _LOKR), _lokr),
}
