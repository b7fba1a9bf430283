"""What sd-webui-controlnet does to a live UNet: its own loop over the blocks, replaced forwards in them.

Follows scripts/hook.py, scripts/ipadapter/plugable_ipadapter.py and scripts/controlnet_lllite.py.
Everything is restored as there: the bound method that was captured is assigned to the instance and stays.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Control(NamedTuple):
    """One unit: a control model and the picture that it is given."""

    model: nn.Module
    hint: Tensor  # (batch, 3, 8 * height, 8 * width)
    weight: float = 1.0


class FakeUNetHook:
    """UnetHook: replaces the forward of one UNet instance; `context` comes with a row to cut off."""

    def __init__(self, unet: Any, controls: Sequence[Control]) -> None:
        self.unet, self.controls = unet, controls

    def hook(self) -> None:
        self.unet._original_forward = self.unet.forward
        self.unet.forward = MethodType(self._make_forward(), self.unet)

    def restore(self) -> None:
        if hasattr(self.unet, "_original_forward"):
            self.unet.forward = self.unet._original_forward
            del self.unet._original_forward

    def _make_forward(self) -> Callable[..., Tensor]:
        outer = self

        def forward(
            unet: Any, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None
        ) -> Tensor:
            home: Any = importlib.import_module(type(unet).__module__)
            context = context[:, 1:, :]
            added = outer._sum_of_controls(x, timesteps, context, y)
            with torch.no_grad():
                emb = unet.time_embed(
                    home.timestep_embedding(timesteps, unet.model_channels, repeat_only=False)
                )
                if unet.num_classes is not None:
                    emb = emb + unet.label_emb(y)
                h, skips = x, []
                for block in unet.input_blocks:
                    unet.current_h_shape = tuple(h.shape)
                    h = block(h, emb, context)
                    skips.append(h)
                h = unet.middle_block(h, emb, context) + added.pop()
            for block in unet.output_blocks:
                h = home.th.cat([h, skips.pop() + added.pop()], dim=1)
                h = block(h, emb, context)
            return unet.out(h.type(x.dtype))

        return forward

    def _sum_of_controls(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Any) -> list[Tensor]:
        total: list[Tensor] = []
        for control in self.controls:
            outs = [o * control.weight for o in control.model(x, control.hint, timesteps, context, y=y)]
            total = [a + b for a, b in zip(total, outs, strict=True)] if total else outs
        return total


def hook_reference(transformer_blocks: Sequence[Any], containers: Sequence[Any]) -> None:
    """reference-only and adain: `_forward` of transformer blocks, `forward` of containers."""
    for block in transformer_blocks:
        if getattr(block, "_original_inner_forward_cn_hijack", None) is None:
            block._original_inner_forward_cn_hijack = block._forward
        block._forward = MethodType(_reference_inner_forward, block)
    for container in containers:
        if getattr(container, "original_forward_cn_hijack", None) is None:
            container.original_forward_cn_hijack = container.forward
        container.forward = MethodType(_adain_forward, container)


def clear_reference(unet: nn.Module) -> None:
    """Puts back what was captured, on the instances."""
    for module in unet.modules():
        if getattr(module, "_original_inner_forward_cn_hijack", None) is not None:
            module._forward = module._original_inner_forward_cn_hijack
        if getattr(module, "original_forward_cn_hijack", None) is not None:
            module.forward = module.original_forward_cn_hijack


def _reference_inner_forward(self: Any, x: Tensor, context: Any = None) -> Tensor:
    normed = self.norm1(x)
    x = self.attn1(normed, context=torch.cat([normed, 2 * normed.flip(1)], dim=1)) + x
    x = self.attn2(self.norm2(x), context=context) + x
    return self.ff(self.norm3(x)) + x


def _adain_forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
    x = self.original_forward_cn_hijack(*args, **kwargs)
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
    return ((x - mean) / (variance + 1e-6) ** 0.5) * 1.1 + 0.5


class FakeIPAdapter:
    """Replaces `attn2.forward` of some transformer blocks."""

    def __init__(self, strength: float = 0.5) -> None:
        self.strength = strength
        self._hacked: dict[Any, Any] = {}

    def hook(self, attention: Any) -> None:
        attention.ipadapter_hacks = [lambda block, x, query: self.strength * x.roll(1, dims=1)]
        self._hacked[attention] = attention.forward
        attention.forward = _attention_with_image.__get__(attention, type(attention))

    def clear(self) -> None:
        for attention, captured in self._hacked.items():
            attention.forward = captured
            attention.ipadapter_hacks = []
        self._hacked.clear()


def _attention_with_image(self: Any, x: Tensor, context: Any = None, **kwargs: Any) -> Tensor:
    source = x if context is None else context
    q, k, v = (
        layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        for layer, given in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
    )
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    for hack in self.ipadapter_hacks:
        mixed = mixed + hack(self, x, q)
    return self.to_out(mixed)


class FakeLLLite:
    """Replaces the forward of projections by a closure that also knows the UNet."""

    def __init__(self) -> None:
        self._hacked: dict[Any, Any] = {}

    def hook(self, unet: nn.Module, projection: Any) -> None:
        captured = self._hacked[projection] = projection.forward

        def forward(x: Tensor, **kwargs: Any) -> Tensor:
            share = getattr(unet, "current_sampling_percent", 0.5)
            return captured(x + share * x.flip(-1), **kwargs)

        projection.forward = forward

    def clear(self) -> None:
        for projection, captured in self._hacked.items():
            projection.forward = captured
        self._hacked.clear()
