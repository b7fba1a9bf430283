"""The webui's Lora extension, as far as the layers of a UNet see it: weights merged at a layer's next call.

Follows extensions-builtin/Lora/networks.py: marks, backups on the CPU, one rounding for each network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_PATCHED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


@dataclass
class FakeDelta:
    """What one network adds to one layer, at full strength."""

    up: Tensor
    down: Tensor
    bias: Tensor | None

    def calc_updown(self, weight: Tensor, multiplier: float) -> tuple[Tensor, Tensor | None]:
        updown = (self.up.to(weight.dtype) @ self.down.to(weight.dtype)).reshape(weight.shape)
        return updown * multiplier, None if self.bias is None else self.bias.to(weight.dtype) * multiplier


@dataclass
class FakeNetwork:
    """One file of deltas with the strengths that the prompt asks for."""

    name: str
    te_multiplier: float = 1.0
    unet_multiplier: float = 1.0
    dyn_dim: int | None = None
    modules: dict[str, FakeDelta] = field(default_factory=dict)


class FakeLora:
    """The module `networks`. `calls` counts how often a layer was looked at."""

    def __init__(self) -> None:
        self.loaded_networks: list[FakeNetwork] = []
        self.calls = 0
        self.looked_at: list[str] = []
        self.failing_layer: str | None = None  # whose merge raises

    def wanted(self) -> tuple[tuple[Any, ...], ...]:
        return tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in self.loaded_networks)

    def network_apply_weights(self, layer: Any) -> None:
        self.calls += 1
        name = getattr(layer, "network_layer_name", None)
        if name is None:
            return
        current, wanted = getattr(layer, "network_current_names", ()), self.wanted()
        if wanted and getattr(layer, "network_weights_backup", None) is None:
            if current:
                raise RuntimeError(f"{name}: no backup weights found and current weights are not unchanged")
            layer.network_weights_backup = layer.weight.to("cpu", copy=True)
            layer.network_bias_backup = None if layer.bias is None else layer.bias.to("cpu", copy=True)
        if current != wanted:
            if name == self.failing_layer:
                raise TypeError(f"{name}: cannot merge")
            self._restore(layer)
            for network in self.loaded_networks:
                if name in network.modules:
                    self._add(layer, network.modules[name], network.unet_multiplier)
            layer.network_current_names = wanted

    def _restore(self, layer: Any) -> None:
        if getattr(layer, "network_weights_backup", None) is None:
            return
        with torch.no_grad():
            layer.weight.copy_(layer.network_weights_backup)
            if layer.network_bias_backup is None:
                layer.bias = None
            else:
                layer.bias.copy_(layer.network_bias_backup)

    def _add(self, layer: Any, delta: FakeDelta, multiplier: float) -> None:
        with torch.no_grad():
            updown, ex_bias = delta.calc_updown(layer.weight, multiplier)
            layer.weight.copy_((layer.weight.to(updown.dtype) + updown).to(layer.weight.dtype))
            if ex_bias is None:
                return
            if layer.bias is None:
                layer.bias = nn.Parameter(ex_bias, requires_grad=False)
            else:
                layer.bias.copy_((layer.bias + ex_bias).to(layer.bias.dtype))

    @contextlib.contextmanager
    def installed(self) -> Iterator[FakeLora]:
        """Replaces the forwards and the loading of weights of four classes of torch.nn for the block."""
        names = ("forward", "_load_from_state_dict")
        before = [
            (kind, name, getattr(kind, name), name in vars(kind)) for kind in _PATCHED for name in names
        ]
        for kind, name, original, _ in before:
            setattr(kind, name, self._forward(original) if name == "forward" else self._loading(original))
        try:
            yield self
        finally:
            for kind, name, original, was_own in before:
                if was_own:
                    setattr(kind, name, original)
                else:
                    delattr(kind, name)

    def _forward(self, original: Any) -> Any:
        def forward(layer: Any, given: Tensor) -> Tensor:
            self.network_apply_weights(layer)
            return original(layer, given)

        return forward

    def _loading(self, original: Any) -> Any:
        def load_from_state_dict(layer: Any, *args: Any, **kwargs: Any) -> Any:
            layer.network_current_names = ()
            layer.network_weights_backup = layer.network_bias_backup = None
            return original(layer, *args, **kwargs)

        return load_from_state_dict


def layers_of(model: nn.Module) -> dict[str, Any]:
    """The layers that networks can change, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _PATCHED)}


def name_layers(model: nn.Module) -> None:
    """Gives each layer the name that networks know it by, as the extension does when a model is loaded."""
    for name, layer in layers_of(model).items():
        layer.network_layer_name = "diffusion_model_" + name.replace(".", "_")


def random_network(
    model: nn.Module, name: str, *, seed: int, strength: float = 1.0, with_biases: bool = True
) -> FakeNetwork:
    """A network of rank 2 for every linear layer and convolution, with a bias for some of them or none."""
    generator = torch.Generator().manual_seed(seed)
    network = FakeNetwork(name, strength, strength)
    for index, layer in enumerate(layers_of(model).values()):
        if layer.weight.dim() == 1:
            continue
        out, width = layer.weight.shape[0], layer.weight[0].numel()
        up = 0.2 * torch.randn(out, 2, generator=generator)
        down = torch.randn(2, width, generator=generator) / width**0.5
        bias = 0.1 * torch.randn(out, generator=generator) if with_biases and index % 3 == 0 else None
        network.modules[layer.network_layer_name] = FakeDelta(up, down, bias)
    return network
