"""Tensors without memory, by which an operator is asked about calls whose tensors are not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Shell(Tensor):
    """What a tensor says of itself, without its memory; whoever reads it gets an error."""

    @staticmethod
    def __new__(
        cls, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Shell:
        made: Shell = Tensor._make_wrapper_subclass(
            cls, torch.Size(shape), strides=tuple(strides), dtype=dtype, device=device
        )
        return made

    @classmethod
    def like(cls, tensor: Tensor) -> Shell:
        """Without the memory of this one."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(f"{func} of a tensor without memory")
