"""What of a call decides which back ends can take it, and why none can."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNED = 8  # elements: the kernels read 16 bytes at once, of the smallest dtype


class Case(NamedTuple):
    """A call of (batch, tokens, heads * size) tensors on a GPU, without the tensors."""

    capability: tuple[int, int]
    dtype: torch.dtype  # in which it is computed
    batch: int
    heads: int
    size: int  # of a head
    source: int  # tokens of key and value
    is_aligned: bool  # each head's values lie together, and begin where kernels can read

    def widened(self, size: int) -> Case:
        """The same call with each head filled up with zeros to `size`."""
        return self._replace(size=size, is_aligned=True)


def why_not(
    query: Tensor, key: Tensor, value: Tensor, heads: int, dtype: torch.dtype | None
) -> tuple[str, ...]:
    """Reasons for which no back end takes these tensors; empty if some may.

    dtype: what they are cast to first, None for what they come in.
    """
    tensors = (query, key, value)
    if query.device.type != "cuda":
        return (f"device is {query.device.type}, needs cuda",)
    if torch.version.hip:
        return ("this torch is built for ROCm, and the back ends were not tried there",)
    reasons = []
    if any(tensor.device != query.device for tensor in tensors):
        reasons.append(f"tensors are on {', '.join(str(t.device) for t in tensors)}, needs one device")
    if dtype is None and any(tensor.dtype is not query.dtype for tensor in tensors):
        reasons.append(f"dtypes are {', '.join(str(t.dtype) for t in tensors)}, needs one")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        reasons.append("gradients are asked for")
    return (*reasons, *_why_not_shapes(query, key, value, heads))


def case_of(query: Tensor, key: Tensor, value: Tensor, heads: int, dtype: torch.dtype | None) -> Case:
    """The case of tensors for which `why_not` found no reason."""
    batch, _, channels = query.shape
    size = channels // heads
    return Case(
        capability=capability(query.device),
        dtype=dtype or query.dtype,
        batch=batch,
        heads=heads,
        size=size,
        source=key.shape[1],
        is_aligned=size % ALIGNED == 0 and all(map(_is_aligned, (query, key, value))),
    )


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)


def _why_not_shapes(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[str, ...]:
    shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
    if any(len(shape) != 3 for shape in shapes):
        return (f"shapes are {shapes}, needs (batch, tokens, channels)",)
    if shapes[1] != shapes[2] or shapes[0][::2] != shapes[1][::2]:
        return (f"shapes are {shapes}, needs one batch and one width, and as many keys as values",)
    if query.shape[2] % heads:
        return (f"{query.shape[2]} channels do not divide into {heads} heads",)
    return ("a tensor is empty",) if any(tensor.numel() == 0 for tensor in (query, key, value)) else ()


def _is_aligned(tensor: Tensor) -> bool:
    # Where the memory itself begins is a multiple of 256 bytes in all of torch's allocations.
    *rows, last = tensor.stride()
    return last == 1 and all(step % ALIGNED == 0 for step in (*rows, tensor.storage_offset()))
