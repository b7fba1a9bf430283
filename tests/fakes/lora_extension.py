"""The webui's modules networks, network_lora, network_hada, network_lokr and network_full, in short.

Arithmetic, marks, backups and errors follow extensions-builtin/Lora/: each network is computed for itself and
added to the weight, which is rounded each time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Network:
    """network.Network."""

    name: str
    te_multiplier: float = 1.0
    unet_multiplier: float = 1.0
    dyn_dim: int | None = None
    mtime: float = 1.0
    modules: dict[str, Any] = field(default_factory=dict)


class NetworkModule:
    """network.NetworkModule."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor]) -> None:
        self.network = network
        self.bias = weights.get("bias")
        self.dora_scale = weights.get("dora_scale")
        self.alpha = weights["alpha"].item() if "alpha" in weights else None
        self.scale: float | None = None
        self.dim: int | None = None

    def multiplier(self) -> float:
        return self.network.unet_multiplier

    def calc_scale(self) -> float:
        if self.scale is not None:
            return self.scale
        return self.alpha / self.dim if self.dim is not None and self.alpha is not None else 1.0

    def finalize(self, updown: Tensor, weight: Tensor) -> Tensor:
        updown = updown.reshape(weight.shape) * self.calc_scale()
        if self.dora_scale is not None:
            merged = updown + weight
            norm = merged.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.ndim - 2))
            updown = merged * (self.dora_scale / norm) - weight
        return updown * self.multiplier()


class NetworkModuleLora(NetworkModule):
    """network_lora.NetworkModuleLora."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor]) -> None:
        super().__init__(network, weights)
        self.up_model = SimpleNamespace(weight=weights["lora_up.weight"])
        self.down_model = SimpleNamespace(weight=weights["lora_down.weight"])
        mid = weights.get("lora_mid.weight")
        self.mid_model = None if mid is None else SimpleNamespace(weight=mid)
        self.dim = len(weights["lora_down.weight"])

    def calc_updown(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        up, down = self.up_model.weight.flatten(1), self.down_model.weight.flatten(1)
        if self.mid_model is not None:
            updown = torch.einsum("nmkl,in,mj->ijkl", self.mid_model.weight, up, down)
        else:
            updown = up[:, : self.network.dyn_dim] @ down[: self.network.dyn_dim]
        if weight.ndim == 4 and weight.shape[1] == 9:
            updown = updown.reshape(weight.shape[0], 4, *weight.shape[2:])
            updown = nn.functional.pad(updown, (0, 0, 0, 0, 0, 5))
        return self.finalize(updown, weight), None


class NetworkModuleHada(NetworkModule):
    """network_hada.NetworkModuleHada."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor]) -> None:
        super().__init__(network, weights)
        self.w1a, self.w1b = weights["hada_w1_a"], weights["hada_w1_b"]
        self.w2a, self.w2b = weights["hada_w2_a"], weights["hada_w2_b"]
        self.t1, self.t2 = weights.get("hada_t1"), weights.get("hada_t2")
        self.dim = len(self.w1b)

    def calc_updown(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        first, second = _product(self.w1a, self.w1b, self.t1), _product(self.w2a, self.w2b, self.t2)
        return self.finalize(first.reshape(weight.shape) * second.reshape(weight.shape), weight), None


class NetworkModuleLokr(NetworkModule):
    """network_lokr.NetworkModuleLokr."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor]) -> None:
        super().__init__(network, weights)
        self.w1, self.w1a, self.w1b, self.w2, self.w2a, self.w2b, self.t2 = (
            weights.get(f"lokr_{name}") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        )
        self.dim = next((len(each) for each in (self.w2b, self.w1b) if each is not None), None)

    def calc_updown(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        w1 = self.w1 if self.w1 is not None else self.w1a @ self.w1b
        w2 = self.w2 if self.w2 is not None else _product(self.w2a, self.w2b, self.t2)
        return self.finalize(torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2), weight), None


class NetworkModuleFull(NetworkModule):
    """network_full.NetworkModuleFull."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor]) -> None:
        super().__init__(network, weights)
        self.weight, self.ex_bias = weights["diff"], weights.get("diff_b")

    def calc_updown(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        bias = None if self.ex_bias is None else self.ex_bias * self.multiplier()
        return self.finalize(self.weight, weight), bias


for _kind in (NetworkModuleLora, NetworkModuleHada, NetworkModuleLokr, NetworkModuleFull):
    _kind.__module__ = f"network_{_kind.__name__.removeprefix('NetworkModule').lower()}"


def _product(a: Tensor | None, b: Tensor | None, mid: Tensor | None) -> Tensor:
    assert a is not None
    assert b is not None
    return a @ b.flatten(1) if mid is None else torch.einsum("ijkl,jr,ip->prkl", mid, b, a).contiguous()


class Networks:
    """The module `networks`; `writes` counts the layers that it merged by itself."""

    def __init__(self, *loaded: Network) -> None:
        self.loaded_networks = list(loaded)
        self.available_network_aliases: dict[str, Any] = {}
        self.extra_network_lora = SimpleNamespace(errors={})
        self.writes = 0
        self.reads: list[str] = []

    def load_network(self, name: str, network_on_disk: Any) -> Network:
        self.reads.append(name)
        return Network(name, mtime=os.path.getmtime(network_on_disk.filename))

    def add_file(self, name: str, path: Path) -> SimpleNamespace:
        self.available_network_aliases[name] = SimpleNamespace(filename=str(path))
        return self.available_network_aliases[name]

    def restore_weights_backup(self, owner: Any, name: str, backup: Tensor | None) -> None:
        if backup is None:
            setattr(owner, name, None)
        else:
            getattr(owner, name).copy_(backup)

    def network_restore_weights_from_backup(self, layer: Any) -> None:
        backups = [getattr(layer, f"network_{name}_backup", None) for name in ("weights", "bias")]
        if backups == [None, None]:
            return
        if backups[0] is not None:
            self.restore_weights_backup(layer, "weight", backups[0])
        self.restore_weights_backup(layer, "bias", backups[1])

    @torch.no_grad()
    def network_apply_weights(self, layer: Any) -> None:
        name = getattr(layer, "network_layer_name", None)
        if name is None:
            return
        current = getattr(layer, "network_current_names", ())
        wanted = tuple((x.name, x.te_multiplier, x.unet_multiplier, x.dyn_dim) for x in self.loaded_networks)
        if wanted and getattr(layer, "network_weights_backup", None) is None:
            if current:
                raise RuntimeError("no backup weights found and current weights are not unchanged")
            layer.network_weights_backup = layer.weight.detach().to("cpu", copy=True)
        if wanted and getattr(layer, "network_bias_backup", None) is None and layer.bias is not None:
            if current:
                raise RuntimeError("no backup bias found and current bias are not unchanged")
            layer.network_bias_backup = layer.bias.detach().to("cpu", copy=True)
        if current == wanted:
            return
        self.writes += 1
        self.network_restore_weights_from_backup(layer)
        for network in self.loaded_networks:
            if name in network.modules:
                self._add(layer, network.modules[name])
        layer.network_current_names = wanted

    def _add(self, layer: Any, module: Any) -> None:
        try:
            updown, bias = module.calc_updown(layer.weight)
            layer.weight.copy_((layer.weight.to(updown.dtype) + updown).to(layer.weight.dtype))
        except RuntimeError:  # no other error: that comes out of the layer
            errors = self.extra_network_lora.errors
            errors[module.network.name] = errors.get(module.network.name, 0) + 1
            return
        if bias is not None and layer.bias is None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        elif bias is not None:
            layer.bias.copy_((layer.bias + bias).to(layer.bias.dtype))
