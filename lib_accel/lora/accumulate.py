"""Writes a weight as its pristine bits plus the terms of all its networks, rounded once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lib_accel.device import autocast_off
from lib_accel.lora.terms import Dense, Factors, Rewrite, Term


@contextlib.contextmanager
def writing(weight: Tensor) -> Iterator[None]:
    """Where a weight can be written: one that was made in inference mode in that mode only."""
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        yield


@torch.no_grad()
def write_sum(weight: Tensor, base: Tensor, terms: Sequence[Term]) -> None:
    """Makes `weight` its base + all terms in their order, computed in float32 or wider and rounded once.

    base: the pristine bits, of the weight's shape, on any device; not changed. terms: on the weight's device.
    Autocast does not change the result.
    """
    if not terms:
        weight.copy_(base)
        return
    wide = torch.promote_types(weight.dtype, torch.float32)
    in_place = weight.dtype == wide and weight.is_contiguous()  # half the time of a sum beside it
    total = weight if in_place else torch.empty(weight.shape, dtype=wide, device=weight.device)
    # Moved in its own dtype: in a copy across devices torch would widen it on the CPU first. Towards a GPU
    # without waiting, if the base is pinned; towards the CPU that would not be safe.
    total.copy_(base.to(weight.device, non_blocking=weight.is_cuda))
    with autocast_off(weight.device.type):
        for kind, run in groupby(terms, key=type):
            _ADD[kind](total, run)
    if not in_place:
        weight.copy_(total)


def _add_factors(total: Tensor, terms: Iterable[Factors]) -> None:
    """One product over the ranks of all terms."""
    ups, downs, strengths = zip(*terms, strict=True)
    up, down = torch.cat(ups, dim=1).to(total.dtype), torch.cat(downs).to(total.dtype)
    if len(set(strengths)) == 1:
        total.flatten(1).addmm_(up, down, alpha=strengths[0])
        return
    by_rank = tuple((each.shape[1], strength) for each, strength in zip(ups, strengths, strict=True))
    total.flatten(1).addmm_(up * _row(by_rank, total.dtype, total.device), down)


@lru_cache(maxsize=16)
def _row(by_rank: tuple[tuple[int, float], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Each strength as often as there are ranks of it.

    Kept, since most layers of a set have the same, and a GPU is waited for to make one.
    """
    each = [strength for ranks, strength in by_rank for _ in range(ranks)]
    return torch.tensor(each, dtype=dtype, device=device)


def _add_dense(total: Tensor, terms: Iterable[Dense]) -> None:
    for term in terms:
        total.add_(term.delta.view(total.shape), alpha=term.strength)


def _add_rewrites(total: Tensor, terms: Iterable[Rewrite]) -> None:
    for term in terms:
        total.add_(term.delta(total).view(total.shape), alpha=term.strength)


_ADD: Mapping[type, Callable[[Tensor, Iterable[Any]], None]] = {
    Factors: _add_factors,
    Dense: _add_dense,
    Rewrite: _add_rewrites,
}
