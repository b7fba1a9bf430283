"""Projections whose weights lie one after the other in one memory, so that one product computes them all.

Query, key and value of an attention to itself; key and value of one to a context. The Parameters stay, with
their values to the bit, their counts of writes and all that others hang on them; each is a part of a larger
memory from then on, which together take what they took before. So a merge in place and an undo of one go on
as before, and who moves or replaces one of them ends it for that attention (blocks.adjacent).
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lib_accel.blocks.adjacent import are_adjacent
from lib_accel.blocks.operators import projections
from lib_accel.device import OUT_OF_MEMORY
from lib_accel.way import SHARED, Piece, Way, as_made, modules_of, parameters, share, why_none

BY_OTHERS = "somebody else has packed its weights"

_LAYERS = ("to_q", "to_k", "to_v")  # in ldm, sgm and diffusers alike
_ALIGNMENT = 16  # bytes, at multiples of which the fastest products begin to read


def pieces_of(model: nn.Module) -> list[Piece]:
    """The weights of its attentions that one product could take, together, each piece once."""
    found: dict[tuple[int, ...], Piece] = {}
    for module in modules_of(model):
        if _LAYERS[0] not in module._modules:
            continue
        layers = [module._modules.get(name) for name in _LAYERS]
        if all(isinstance(layer, nn.Linear) for layer in layers) and (piece := _piece(layers)):
            found[tuple(map(id, piece))] = piece
    return list(found.values())


def _piece(layers: Sequence[Any]) -> Piece:
    """What of query, key and value reads the same input; nothing where there are biases, say."""
    query, *others = weights = [layer._parameters.get("weight") for layer in layers]
    if any(weight is None or weight.dim() != 2 or weight.nbytes % _ALIGNMENT for weight in weights):
        return ()
    if any(layer._parameters.get("bias") is not None for layer in layers):
        return ()
    key, value = others
    if key.shape[1] != value.shape[1]:
        return ()
    return (query, key, value) if query.shape[1] == key.shape[1] else (key, value)


def why_not(pieces: Sequence[Piece], ours: Collection[int] = ()) -> str | None:
    """Why these are not to be packed, or None; `ours`: ids of the weights that we have packed."""
    weights = parameters(pieces)
    if reason := why_none(weights):
        return reason
    if any(len({(each.dtype, each.is_inference()) for each in piece}) > 1 for piece in pieces):
        return "its weights are of several dtypes, or of several modes of torch"
    if len({id(weight) for weight in weights}) < len(weights):
        return SHARED
    new = [piece for piece in pieces if not (_is_among(piece, ours) and are_adjacent(piece))]
    if new and all(map(are_adjacent, new)):
        return BY_OTHERS
    if not all(weight.is_contiguous() for piece in new for weight in piece):
        return "its weights are views"
    return SHARED if share(parameters(new)) else None


def _is_among(piece: Piece, ids: Collection[int]) -> bool:
    return all(id(weight) in ids for weight in piece)


class _Pack(NamedTuple):
    """The weights of one piece, and the memory that they were given."""

    references: tuple[weakref.ref[Any], ...]
    memory: StorageWeakRef

    def left(self) -> Iterator[nn.Parameter]:
        """Those that still lie there."""
        for reference in self.references:
            weight = reference()
            # Which stays the only one there as long as it is referred to, if weakly.
            if weight is not None and weight.untyped_storage()._cdata == self.memory.cdata:
                yield weight

    @property
    def is_whole(self) -> bool:
        """Whether all do, one after the other."""
        left = list(self.left())
        return len(left) == len(self.references) and are_adjacent(left)


class Packed:
    """Weights of one model that were packed. Holds them, and their memory, weakly (way.Laid)."""

    def __init__(self) -> None:
        self._packs: list[_Pack] = []

    def ids(self) -> set[int]:
        """Of those whose pieces are whole."""
        return {id(weight) for pack in self._packs if pack.is_whole for weight in pack.left()}

    def mend(self) -> int:
        """Gives memory of their own to weights of pieces that are not whole. How many have moved."""
        packs, self._packs = self._packs, []
        broken: list[_Pack] = []
        for pack in packs:
            (self._packs if pack.is_whole else broken).append(pack)
        return self._take_apart(broken)

    def lay(self, pieces: Sequence[Piece]) -> int:
        """Packs those that lie apart, one piece at a time: it needs memory for one more. How many have moved.

        What it raises for lack of memory leaves some packed, which `put_back` knows.
        """
        apart = [piece for piece in pieces if not are_adjacent(piece)]
        for piece in apart:
            self._packs.append(_pack(piece))
        return len(parameters(apart))

    def put_back(self) -> int:
        """Gives memory of their own to those that still lie where we laid them. How many have moved.

        Those for which there is no memory stay until the next time.
        """
        packs, self._packs = self._packs, []
        return self._take_apart(packs)

    def _take_apart(self, packs: Sequence[_Pack]) -> int:
        count = 0
        for pack in packs:
            try:
                for weight in pack.left():
                    _give_own(weight)
                    count += 1
            except OUT_OF_MEMORY:
                self._packs.append(pack)
        return count


def _pack(piece: Piece) -> _Pack:
    with as_made(piece[0]):
        memory = torch.cat([weight.detach() for weight in piece])
        begin = 0
        for weight in piece:
            weight.data, begin = memory[begin : begin + len(weight)], begin + len(weight)
    return _Pack(tuple(map(weakref.ref, piece)), _memory(memory))


def _memory(tensor: Tensor) -> StorageWeakRef:
    """Equal for tensors of one memory only; a weak reference, so that no other memory takes its place."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _give_own(weight: nn.Parameter) -> None:
    with as_made(weight):
        weight.data = weight.detach().clone()


PACKED = Way(
    question=projections.PROJECTIONS,
    code=projections.PACKED,
    kept_as="packed projections",
    parts="attention parts",
    spoken=("apart", "packed"),
    known_by=projections.KEY,
    key=projections.key_of,
    calls=projections.calls,
    find=pieces_of,
    why_not=why_not,
    by_others=BY_OTHERS,
    laid=Packed,
)
