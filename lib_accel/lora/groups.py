"""Weights that LoRAs alone change are written together: those of one kind at once, as was chosen for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from lib_accel.blocks.operators.operator import Implementation, Tuned
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.kernels.lora_fuse import Layer, Pair
from lib_accel.lora.accumulate import write_sum, writing
from lib_accel.lora.merge import MERGE, MergeKind, chosen_for, way_of
from lib_accel.lora.terms import Factors, Term

PORTION = 256 * 2**20  # bytes of factors; of a set that has more, one portion is written after the other
_LAST = (0, 2, 3, 1)  # the dimensions of a convolution's weight in the order of channels last


class Merge(NamedTuple):
    """A weight that is to be written as its pristine bits and these terms; see `write_sum`."""

    weight: Tensor
    base: Tensor
    terms: Sequence[Term]

    def write(self) -> None:
        """By plain torch."""
        with writing(self.weight):
            write_sum(self.weight, self.base, self.terms)


@torch.no_grad()
def write_together(merges: Sequence[Merge], tuned: Tuned) -> list[str | None]:
    """Writes weights as was chosen for their kinds; returns by what each was, None for `write_sum`.

    What the chosen one cannot take or fails at goes by `write_sum`. If that raises, or memory runs short,
    some of the weights are written and others not, or by half.
    """
    names: list[str | None] = [None] * len(merges)
    for group, numbers in _grouped(merges).items():
        if group is None:
            for number in numbers:
                merges[number].write()
        else:
            written = _write_group(group.kind, [merges[number] for number in numbers], tuned)
            for number, name in zip(numbers, written, strict=True):
                names[number] = name
    return names


@torch.no_grad()
def chosen_way(merge: Merge, tuned: Tuned) -> str | None:
    """By what `write_together` would write a weight, if that does not fail; None for `write_sum`."""
    group = _group_of(merge)
    chosen = None if group is None else chosen_for(group.kind, tuned)
    if group is None or chosen is None or way_of(chosen).why_not([_layer(merge, group.kind)]):
        return None
    return chosen.name


class _Group(NamedTuple):
    """What the weights of one launch have in common."""

    kind: MergeKind
    shape: torch.Size


def _grouped(merges: Sequence[Merge]) -> dict[_Group | None, list[int]]:
    """The numbers of weights by their group; last the None of those that are written alone."""
    groups: dict[_Group | None, list[int]] = {}
    alone: list[int] = []
    seen: set[int] = set()
    for number, merge in enumerate(merges):
        address = merge.weight.data_ptr()
        # Of two layers that share a weight the second one's bits stay, as if each had been written alone.
        group = None if address in seen else _group_of(merge)
        seen.add(address)
        (alone if group is None else groups.setdefault(group, [])).append(number)
    return groups | {None: alone}


def _group_of(merge: Merge) -> _Group | None:
    """None if it can be written by plain torch only."""
    weight, base, terms = merge
    factors = [term for term in terms if isinstance(term, Factors)]
    is_alike = weight.dim() > 1 and (base.dtype, base.shape) == (weight.dtype, weight.shape)
    if not is_alike or not terms or len(factors) < len(terms):
        return None
    dtypes = {dtype for term in factors for dtype in (term.up.dtype, term.down.dtype)}
    ranks = [term.up.shape[1] for term in factors]
    return _Group(MergeKind.of(weight, reduce(torch.promote_types, dtypes), ranks), weight.shape)


def _write_group(kind: MergeKind, merges: Sequence[Merge], tuned: Tuned) -> list[str | None]:
    """Writes weights of one group; returns by what each was."""
    chosen = chosen_for(kind, tuned)
    taken: Sequence[int] = () if chosen is None else _write_at_once(chosen, kind, merges, tuned)
    for number, merge in enumerate(merges):
        if number not in taken:
            merge.write()
    return [chosen.name if chosen and number in taken else None for number in range(len(merges))]


def _write_at_once(
    chosen: Implementation, kind: MergeKind, merges: Sequence[Merge], tuned: Tuned
) -> Sequence[int]:
    """Writes those weights that the chosen implementation takes; returns their numbers, none if it fails."""
    way, layers = way_of(chosen), [_layer(merge, kind) for merge in merges]
    taken: Sequence[int] = range(len(layers))
    try:
        if way.why_not(layers):
            taken = [number for number in taken if not way.why_not([layers[number]])]
        if taken:
            for number in taken:
                _bring_base(merges[number], layers[number])
            way.write([layers[number] for number in taken])
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # of drivers, of Triton's compiler: a set must be fused
        tuned.note_failure(MERGE, chosen, error)
        return ()
    return taken


def _layer(merge: Merge, kind: MergeKind) -> Layer:
    """A weight as kernels know it; what lies channels last, as a matrix whose columns are in that order.

    Its base is the weight itself, where the pristine bits have to be brought first.
    """
    live, base, terms = merge
    live = live.detach()  # has its memory as long as the layer is there, wherever others lay the weight
    is_turned = live.dim() == 4 and not live.is_contiguous()
    if is_turned:
        live, base = live.permute(_LAST), base.permute(_LAST)
    pairs = []
    for term in terms:
        assert isinstance(term, Factors)
        up, down, strength = term
        if not up.dtype is down.dtype is kind.factors:
            up, down = up.to(kind.factors), down.to(kind.factors)
        if is_turned:
            down = down.reshape(-1, *merge.weight.shape[1:]).permute(_LAST).flatten(1).contiguous()
        pairs.append(Pair(up, down, strength))
    is_here = base.device == live.device and base.is_contiguous()
    return Layer(live, base if is_here else live, pairs)


def _bring_base(merge: Merge, layer: Layer) -> None:
    """Copies the pristine bits to where they are summed in place; nobody waits for pinned ones."""
    if layer.base is layer.live:
        with writing(merge.weight):
            merge.weight.copy_(merge.base, non_blocking=merge.weight.is_cuda)
