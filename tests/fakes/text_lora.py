"""The webui's Lora extension, as far as text encoders see more of it than UNets do: nn.MultiheadAttention.

Follows extensions-builtin/Lora/networks.py: the attention's merge changes its packed projection and its last
layer, which has a name of its own all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.fakes.lora import FakeDelta, FakeLora, FakeNetwork, random_network


class FakeTextLora(FakeLora):
    """`merged_outputs` counts how often the last layer of an attention was changed."""

    def __init__(self) -> None:
        super().__init__()
        self.merged_outputs = 0

    def network_apply_weights(self, layer: Any) -> None:
        self.looked_at.append(getattr(layer, "network_layer_name", ""))
        if isinstance(layer, nn.MultiheadAttention):
            self.calls += 1
            if getattr(layer, "network_current_names", ()) != self.wanted():
                self._merge_attention(layer)
        else:
            super().network_apply_weights(layer)

    def _merge_attention(self, layer: Any) -> None:
        weights = (layer.in_proj_weight, layer.out_proj.weight)
        if getattr(layer, "network_weights_backup", None) is None:
            layer.network_weights_backup = tuple(each.to("cpu", copy=True) for each in weights)
        with torch.no_grad():
            for weight, backup in zip(weights, layer.network_weights_backup, strict=True):
                weight.copy_(backup)
            for network in self.loaded_networks:
                for weight, delta in zip(weights, _deltas(network, layer), strict=True):
                    weight.add_(delta)
                self.merged_outputs += 1
        layer.network_current_names = self.wanted()

    @contextlib.contextmanager
    def installed(self) -> Iterator[FakeTextLora]:
        """Replaces the forward of one class more for the block."""
        original = nn.MultiheadAttention.forward

        def forward(layer: Any, *args: Any, **options: Any) -> Any:
            self.network_apply_weights(layer)
            return original(layer, *args, **options)

        with super().installed():
            nn.MultiheadAttention.forward = forward
            try:
                yield self
            finally:
                nn.MultiheadAttention.forward = original


def _deltas(network: FakeNetwork, layer: Any) -> tuple[Tensor, Tensor]:
    """What the network adds to the packed projection and to the last layer."""
    query, key, value, out = (
        network.modules[f"{layer.network_layer_name}_{part}_proj"].calc_updown(
            layer.out_proj.weight, network.unet_multiplier
        )[0]
        for part in ("q", "k", "v", "out")
    )
    return torch.vstack([query, key, value]), out


def name_layers(model: nn.Module) -> Any:
    """Names every module that networks could change, as the extension does when a model is loaded."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)):
            module.network_layer_name = "transformer_" + name.replace(".", "_")
    return model


def network(model: nn.Module, name: str, *, seed: int) -> FakeNetwork:
    """A network of rank 2 for every linear layer, and for the three projections of a packed attention."""
    made = random_network(model, name, seed=seed, strength=0.5)
    generator = torch.Generator().manual_seed(seed)
    for layer in (each for each in model.modules() if isinstance(each, nn.MultiheadAttention)):
        for part in ("q", "k", "v"):
            up, down = (torch.randn(*size, generator=generator) for size in ((32, 2), (2, 32)))
            made.modules[f"{layer.network_layer_name}_{part}_proj"] = FakeDelta(0.2 * up, down / 6, None)
    return made
