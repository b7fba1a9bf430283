"""What a back end is, what it can take, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.attention.case import Case

HALVES = (torch.float16, torch.bfloat16)
_BFLOAT16_CAPABILITY = (8, 0)


class Backend(NamedTuple):
    """One way to compute `softmax(scale * query @ key.T) @ value` for each head, and what it can take."""

    name: str
    # Of query, key, value as (batch, tokens, heads, size) and the scale; the result is laid out as the query.
    run: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    capability: tuple[int, int]  # the oldest GPU that it was made for
    dtypes: tuple[torch.dtype, ...]
    largest: int  # head
    tiles: tuple[int, ...]  # heads that its kernels are made for; others leave part of a tile unused
    is_deterministic: bool  # whether it is so by its makers' word
    why_not: Callable[[Case], Sequence[str]]  # for what is not said above: versions, torch's switches


def why_not(backend: Backend, case: Case) -> tuple[str, ...]:
    """Reasons for which the back end cannot take the case as it is; empty if it can."""
    reasons = []
    if case.capability < backend.capability:
        reasons.append(f"the GPU has capability {case.capability}, needs {backend.capability} or newer")
    if case.dtype not in backend.dtypes:
        reasons.append(f"dtype is {case.dtype}, needs one of {', '.join(map(str, backend.dtypes))}")
    elif case.dtype is torch.bfloat16 and case.capability < _BFLOAT16_CAPABILITY:
        reasons.append(f"bfloat16 on a GPU of capability {case.capability}, needs {_BFLOAT16_CAPABILITY}")
    if case.size > backend.largest:
        reasons.append(f"heads of {case.size}, needs {backend.largest} or less")
    if not case.is_aligned:
        reasons.append("heads do not begin at multiples of 8 elements")
    if torch.are_deterministic_algorithms_enabled() and not backend.is_deterministic:
        reasons.append("torch is to be deterministic, and nobody says that this is")
    return (*reasons, *backend.why_not(case))


def widths(backend: Backend, size: int) -> tuple[int, ...]:
    """What heads of `size` may be filled up to: tiles below its double; none for a tile."""
    return () if size in backend.tiles else tuple(tile for tile in backend.tiles if size < tile < 2 * size)


def attend(
    backend: Backend, query: Tensor, key: Tensor, value: Tensor, heads: int, width: int | None = None
) -> Tensor:
    """Attention of (batch, tokens, heads * size) tensors of one dtype, scaled by 1 / sqrt(size).

    width: what each head is filled up to with zeros, which change no sum; None for nothing.
    """
    batch, tokens, channels = query.shape
    size = channels // heads
    query, key, value = [tensor.view(len(tensor), -1, heads, size) for tensor in (query, key, value)]
    if width is not None:
        query, key, value = [F.pad(tensor, (0, width - size)) for tensor in (query, key, value)]
    mixed = backend.run(query, key, value, size**-0.5)
    return mixed.narrow(-1, 0, size).reshape(batch, tokens, channels)
