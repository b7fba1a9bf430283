"""A model of two attentions, to itself and to a context, and what watches products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.blocks.operators.operator import Arguments
from lib_accel.packing import Packed, pieces_of

CHANNELS, SOURCE, HEADS = 16, 8, 2


class Attention(nn.Module):
    """The layers of one, as all hosts name them."""

    def __init__(self, channels: int = CHANNELS, source: int = CHANNELS, *, bias: bool = False) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k, self.to_v = (nn.Linear(source, channels, bias=bias) for _ in range(2))

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """Query, key, value."""
        return self.to_q.weight, self.to_k.weight, self.to_v.weight

    def args(self, tokens: int = 6) -> Arguments:
        """Arguments of PROJECTIONS."""
        source = self.to_k.in_features
        context = None if source == self.to_q.in_features else torch.zeros(2, 3, source)
        return (torch.zeros(2, tokens, self.to_q.in_features), context, *self.weights, HEADS, None)


class Attentions(nn.Module):
    """One to itself, one to a context, and an output layer that belongs to neither."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.own, self.other = Attention(), Attention(source=SOURCE)
        self.out = nn.Linear(CHANNELS, CHANNELS)
        numbers = torch.Generator().manual_seed(1)
        for weight in self.parameters():
            weight.data.copy_(torch.randn(weight.shape, generator=numbers))
        self.to(dtype).requires_grad_(False)


def packed(model: nn.Module) -> Packed:
    """What is packed of a model is all that can be."""
    result = Packed()
    result.lay(pieces_of(model))
    return result


def bits(weight: Tensor) -> Tensor:
    """Of its values, wherever they lie."""
    return weight.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes products and copies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.widths: list[int] = []  # of the results of products
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func.__name__.split(".")[0]
        if name in ("mm", "addmm", "linear"):
            self.widths.append(result.shape[-1])
        if name in ("clone", "copy_", "_to_copy", "cat", "contiguous", "_reshape_copy"):
            self.copies.append(f"{name} {tuple(result.shape)}")
        return result
