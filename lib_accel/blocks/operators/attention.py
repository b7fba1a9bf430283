"""Softmax attention: by torch's own choice of kernel, and by each back end of attention/."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.attention import table
from lib_accel.attention.backend import Backend, attend, why_not
from lib_accel.attention.case import case_of
from lib_accel.attention.case import why_not as why_none
from lib_accel.attention.sage import SAGE
from lib_accel.blocks.bands import rows_of
from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.operator import Implementation, Operator
from lib_accel.blocks.pieces import usual
from lib_accel.blocks.rules import Pieces
from lib_accel.device import is_compiling

# Of torch._fused_sdp_choice: torch.nn.attention.SDPBackend.MATH, which torch 2.1 has elsewhere.
_ALL_SCORES = 0


def plain(query: Tensor, key: Tensor, value: Tensor, heads: int, dtype: torch.dtype | None) -> Tensor:
    """`softmax(query @ key.T / sqrt(size)) @ value` for each head, cast to `dtype` first if that is not None.

    query: (batch, tokens, heads * size), as is the result; key, value: (batch, tokens of the source, heads *
    size).
    """
    return in_torch(query, key, value, heads, dtype, None)


def in_torch(
    query: Tensor, key: Tensor, value: Tensor, heads: int, dtype: torch.dtype | None, pieces: Pieces | None
) -> Tensor:
    """`plain`, whose scores are made in such pieces, or None for what is usual on the device."""
    query, key, value = cast(dtype, query, key, value)
    batch, tokens, channels = query.shape
    size = channels // heads
    # A list, not a generator: torch 2.1 cannot trace that.
    query, key, value = [t.view(len(t), -1, heads, size).transpose(1, 2) for t in (query, key, value)]
    if (cut := _cut(query, key, value, pieces)) is not None:
        return _by_queries(query, key, value, cut)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(batch, tokens, channels)


def _cut(query: Tensor, key: Tensor, value: Tensor, pieces: Pieces | None) -> Pieces | None:
    """How queries of (batch, heads, tokens, size) are cut, or None where all scores may be there at once.

    They are there only where none of torch's kernels takes the arguments that sum up scores as they come.
    """
    if is_compiling() or torch.is_grad_enabled():
        return None
    pieces = pieces or usual(query.device)
    if pieces is None or _scores_bytes(query, key) <= pieces.whole_bytes:
        return None
    return pieces if torch._fused_sdp_choice(query, key, value) == _ALL_SCORES else None


def _by_queries(query: Tensor, key: Tensor, value: Tensor, pieces: Pieces) -> Tensor:
    """Attention of some queries at a time; (batch, tokens, heads * size)."""
    batch, heads, tokens, size = query.shape
    result = query.new_empty(batch, tokens, heads, size)
    some = rows_of(tokens, max(1, pieces.piece_bytes * tokens // _scores_bytes(query, key)))
    for first in range(0, tokens, some):
        mixed = F.scaled_dot_product_attention(query[:, :, first : first + some], key, value)
        result[:, first : first + some] = mixed.transpose(1, 2)
    return result.view(batch, tokens, heads * size)


def _scores_bytes(query: Tensor, key: Tensor) -> int:
    batch, heads, tokens, _ = query.shape
    return batch * heads * tokens * key.shape[2] * query.element_size()


def others(
    query: Tensor, key: Tensor, value: Tensor, heads: int, dtype: torch.dtype | None
) -> Sequence[Implementation]:
    """Each back end that takes the arguments, as they are and with heads filled up to sizes it is made for.

    torch's switches are heeded: a kernel that the user turned off is not among them.
    """
    if why_none(query, key, value, heads, dtype):
        return ()
    return [_implementation(*fit) for fit in table.fitting(case_of(query, key, value, heads, dtype))]


def why_not_sage(
    query: Tensor, key: Tensor, value: Tensor, heads: int, dtype: torch.dtype | None
) -> tuple[str, ...]:
    """Reasons for which SageAttention cannot take the arguments; empty if it can."""
    if reasons := why_none(query, key, value, heads, dtype):
        return reasons
    case = case_of(query, key, value, heads, dtype)
    width = _sage_width(case.size)
    return why_not(SAGE, case if width is None else case.widened(width))


def _by_sage(query: Tensor, key: Tensor, value: Tensor, heads: int, dtype: torch.dtype | None) -> Tensor:
    query, key, value = cast(dtype, query, key, value)
    return attend(SAGE, query, key, value, heads, _sage_width(query.shape[-1] // heads))


def _sage_width(size: int) -> int | None:
    return next((tile for tile in SAGE.tiles if tile > size), None) if size not in SAGE.tiles else None


@cache
def _implementation(backend: Backend, width: int | None) -> Implementation:
    name = backend.name if width is None else f"{backend.name}, heads of {width}"
    return Implementation(name, partial(_by_backend, backend, width))


def _by_backend(
    backend: Backend,
    width: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    dtype: torch.dtype | None,
) -> Tensor:
    query, key, value = cast(dtype, query, key, value)
    return attend(backend, query, key, value, heads, width)


ATTENTION = Operator("attention", plain, others, ((0, 1), (0, 1), (0, 1), (), ()))

# Not among the others: it changes the picture, so it is taken only where `why_not_sage` is empty and the user
# asked for it.
SAGE_ATTENTION = Implementation("sage", _by_sage)
