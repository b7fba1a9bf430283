"""Attention of `ldm` and `sgm` replaced at its classes, as a webui does when it starts: SDPA or xformers."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]  # of q, k, v, each (batch, tokens, heads, channels)

_CLASSES = tuple(
    (f"{package}.modules.{place}", name, is_image)
    for package in ("ldm", "sgm")
    for place, name, is_image in (
        ("attention", "CrossAttention", False),
        ("attention", "MemoryEfficientCrossAttention", False),
        ("diffusionmodules.model", "AttnBlock", True),
        ("diffusionmodules.model", "MemoryEfficientAttnBlock", True),
    )
)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By torch's own function, which chooses its kernel."""
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return mixed.transpose(1, 2)


def xformers_mix() -> Mix:
    """By xformers. Raises ImportError where it is missing or does not fit this torch."""
    operations: Any = importlib.import_module("xformers.ops")
    return lambda q, k, v: operations.memory_efficient_attention(q, k, v)


@contextlib.contextmanager
def mixing(mix: Mix) -> Iterator[None]:
    """Imported classes of the packages attend with `mix` in the block, and as before after it."""
    with contextlib.ExitStack() as undo:
        for home, name, is_image in _CLASSES:
            owner = getattr(sys.modules.get(home), name, None)
            if owner is not None:
                undo.callback(setattr, owner, "forward", owner.forward)
                owner.forward = _image_forward(mix) if is_image else _token_forward(mix)
        yield


def _token_forward(mix: Mix) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor, context: Any = None, mask: Any = None, **unused: Any) -> Tensor:
        assert mask is None  # Stable Diffusion has none
        source = x if context is None else context
        q, k, v = (
            layer(given).unflatten(-1, (self.heads, -1))
            for layer, given in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        result: Tensor = self.to_out(mix(q, k, v).flatten(2))
        return result

    return forward


def _image_forward(mix: Mix) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor, **unused: Any) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(2) for layer in (self.q, self.k, self.v))
        mixed = mix(q, k, v).squeeze(2).transpose(1, 2).reshape(x.shape)
        result: Tensor = x + self.proj_out(mixed)
        return result

    return forward
