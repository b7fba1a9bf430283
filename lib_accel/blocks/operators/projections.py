"""Query, key and value of attention: by a product each, or by one where their weights lie together.

The operator is a question more than one that blocks call: whether attention parts run faster with weights
that lie so. Attention belongs to it, since it then reads rows with gaps between them. What it says of the
parts of a model is added up; see formats.py and packing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.blocks.adjacent import as_one
from lib_accel.blocks.operators import attention
from lib_accel.blocks.operators.casts import cast
from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator

PACKED = "packed"
KEY = 3  # the position of the key's weight among the arguments

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Three = tuple[Tensor, Tensor, Tensor]  # query, key, value


def plain(
    x: Tensor,
    context: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    dtype: torch.dtype | None,
) -> Tensor:
    """Attention of `x` (batch, tokens, channels) to itself, or to `context` (batch, tokens, source).

    query: (inner, channels); key, value: (inner, source); the result is (batch, tokens, inner). All are cast
    to `dtype` first, if that is not None.
    """
    x, context, query, key, value = cast(dtype, x, context, query, key, value)
    source = x if context is None else context
    three = F.linear(x, query), F.linear(source, key), F.linear(source, value)
    return attention.plain(*three, heads, dtype)


def others(
    x: Tensor,
    context: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    dtype: torch.dtype | None,
) -> Sequence[Implementation]:
    """By weights that lie together, on a GPU."""
    weights = query, key, value
    if not x.is_cuda or any(each.dim() != 2 or each.dtype not in _DTYPES for each in weights):
        return ()
    return (Implementation(PACKED, packed()),)


def packed() -> Callable[..., Tensor]:
    """`plain` by weights that lie together: by copies, which are made once, as in a model they lie so."""
    copies: list[Tensor] = []

    def run(x: Tensor, context: Any, *args: Any) -> Tensor:
        *weights, heads, dtype = args
        together = _together(context, weights)
        if not copies:
            copies.extend(torch.split(torch.cat(list(together)), [len(each) for each in together]))
        three = at_once(x, context, *(weights[: -len(together)] + copies), dtype=dtype)
        assert three is not None  # they were made to lie so
        return attention.plain(*three, heads, dtype)

    return run


def at_once(
    x: Tensor, context: Tensor | None, query: Tensor, key: Tensor, value: Tensor, *, dtype: torch.dtype | None
) -> Three | None:
    """Query, key and value of `plain`; those that read the same are views of what one product gives.

    None if the weights of those do not lie together.
    """
    together = _together(context, (query, key, value))
    whole = as_one(together)
    if whole is None:
        return None
    source, whole = cast(dtype, x if context is None else context, whole)
    return _apart(F.linear(source, whole), together, lambda: F.linear(*cast(dtype, x, query)))


def calls(
    x: Tensor,
    context: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    dtype: torch.dtype | None,
) -> list[tuple[Operator, Arguments]]:
    """The operators that the part calls when its weights lie together, and with what, but for the values."""
    together = _together(context, (query, key, value))
    source = x if context is None else context
    joint = source.new_empty((*source.shape[:-1], sum(map(len, together))), dtype=dtype)
    three = _apart(joint, together, lambda: x.new_empty((*x.shape[:-1], len(query)), dtype=dtype))
    return [(attention.ATTENTION, (*three, heads, dtype))]


def key_of(args: Arguments) -> Hashable:
    """What of the arguments tells calls of one attention part from each other."""
    x, context, *_, heads, dtype = args
    seen = None if context is None else (context.shape, context.dtype)
    return x.shape, x.dtype, x.device, seen, heads, dtype


def _together(context: Tensor | None, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights, of query, key and value, that read the same."""
    return weights if context is None else weights[1:]


def _apart(joint: Tensor, together: Sequence[Tensor], query_of: Callable[[], Tensor]) -> Three:
    """The parts of what weights that read the same give, and the query of its own where it reads another."""
    parts = torch.split(joint, [len(each) for each in together], -1)
    query, key, value = parts if len(parts) == 3 else (query_of(), *parts)
    return query, key, value


PROJECTIONS = Operator("projections, attention", plain, others, ((0, 1), (0, 1), (), (), (), (), ()))
