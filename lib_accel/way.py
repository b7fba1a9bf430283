"""Another way for weights of a model to lie in memory than as they were loaded, which may be faster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lib_accel.blocks.operators.operator import Arguments, Operator

SHARED = "its weights share their memory"

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Piece = tuple[nn.Parameter, ...]  # weights that are laid together


class Laid(Protocol):
    """Weights of one model that were laid so. Holds them weakly."""

    def ids(self) -> set[int]:
        """Of those that still lie so."""

    def mend(self) -> int:
        """Puts back what others have left half of. How many weights have moved."""

    def lay(self, pieces: Sequence[Piece]) -> int:
        """Lays what does not lie so yet. How many weights have moved.

        What it raises for lack of memory leaves some laid, which `put_back` knows.
        """

    def put_back(self) -> int:
        """Lays what is still there as it was loaded. How many weights have moved.

        Those for which there is no memory stay until the next time.
        """


class Way(NamedTuple):
    """Which weights may lie so, and how to find out whether that pays."""

    question: Operator  # that is timed, of the blocks that read them; no block calls it
    code: str  # its implementation to which they lie so
    kept_as: str  # the name that its sums are kept by; no other way has it
    parts: str  # what the blocks are called
    spoken: tuple[str, str]  # what the weights are called: as they were loaded, and so
    known_by: int  # the argument of the question that is a weight of one block
    key: Callable[[Arguments], Hashable]  # what tells calls of one block from each other
    calls: Callable[..., list[tuple[Operator, Arguments]]]  # that a block makes when its weights lie so
    find: Callable[[nn.Module], list[Piece]]  # in a model, however they lie
    why_not: Callable[[Sequence[Piece], Collection[int]], str | None]  # of these ids are those that we laid
    by_others: str  # what `why_not` says where somebody else has laid them so
    laid: Callable[[], Laid]


def parameters(pieces: Sequence[Piece]) -> list[nn.Parameter]:
    """The weights one after the other."""
    return [weight for piece in pieces for weight in piece]


def modules_of(model: nn.Module) -> list[nn.Module]:
    """The model and all modules in it, each once, in the order of its `modules()`, which is far slower."""
    found: dict[nn.Module, None] = {}
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is None or module in found:
            continue
        found[module] = None
        if inner := module._modules:
            left.extend(reversed(inner.values()))
    return list(found)


def why_none(weights: Sequence[nn.Parameter]) -> str | None:
    """Why weights like these are not to be laid in any other way, or None."""
    devices = sorted(map(str, {weight.device for weight in weights}))
    if len(devices) > 1 or "meta" in devices:
        return f"its weights are on {' and '.join(devices)}"
    if any(type(weight) is not nn.Parameter for weight in weights):
        return "its weights are of a class of their own"
    if odd := sorted(map(str, {weight.dtype for weight in weights}.difference(_DTYPES))):
        return f"its weights are {' and '.join(odd)}"
    return None


def share(weights: Sequence[Tensor]) -> bool:
    """Whether who writes to one of them writes to something else too, which new memory would end."""
    storages = [weight.untyped_storage() for weight in weights]
    is_part = any(
        storage.nbytes() != weight.nbytes for storage, weight in zip(storages, weights, strict=True)
    )
    return is_part or len({storage.data_ptr() for storage in storages}) < len(storages)


@contextlib.contextmanager
def as_made(weight: Tensor) -> Iterator[None]:
    """What a weight is given in the block keeps it as it was made.

    One made in inference mode stays such, which has no count of writes.
    """
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        yield
