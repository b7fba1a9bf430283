"""Arguments and results taken apart into their tensors and the rest, and put together again.

A recording knows tensors by their memory only. All that is not a tensor is part of what was recorded, so a
call with another number or another string in it is another recording.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Tensors of any other class may do anything when they are used.
PLAIN = (Tensor, nn.Parameter)
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)

_FIRST, _LAST, _STRIDED = "channels-first", "channels-last", "strided"


class NotPlainError(TypeError):
    """There is something among the arguments that no recording can be told from another by."""


class Tree(NamedTuple):
    """A value in parts."""

    tensors: tuple[Tensor, ...]
    form: Hashable  # the rest: equal for two values that differ in their tensors only

    def rebuilt(self, tensors: Sequence[Tensor]) -> Any:
        """The same value with other tensors."""
        return _rebuilt(self.form, iter(tensors))

    @property
    def key(self) -> Hashable:
        """Equal for calls that one recording serves."""
        return self.form, tuple([_meta(tensor) for tensor in self.tensors])


class _Leaf(NamedTuple):
    """Where a tensor is."""


class _Constant(NamedTuple):
    kind: type  # 1, 1.0 and True are equal, but not the same
    value: Any


class _Branch(NamedTuple):
    kind: type
    names: tuple[str, ...] | None  # of a mapping
    members: tuple[Any, ...]


_LEAF = _Leaf()


def flattened(value: Any) -> Tree:
    """Tensors, constants, tuples, lists and mappings with names, nested at will.

    Raises NotPlainError for anything else.
    """
    tensors: list[Tensor] = []
    form = _form(value, tensors)
    return Tree(tuple(tensors), form)


def _form(value: Any, tensors: list[Tensor]) -> Any:
    kind = type(value)
    if kind in PLAIN:
        tensors.append(value)
        return _LEAF
    if kind in _CONSTANTS:
        return _Constant(kind, value)
    if isinstance(value, (tuple, list)):
        return _Branch(kind, None, tuple([_form(each, tensors) for each in value]))
    if isinstance(value, Mapping) and all(type(name) is str for name in value):
        members = tuple([_form(each, tensors) for each in value.values()])
        return _Branch(kind, tuple(value), members)
    raise NotPlainError(f"called with a {kind.__name__}")


def _rebuilt(form: Any, tensors: Iterator[Tensor]) -> Any:
    if form is _LEAF:
        return next(tensors)
    if type(form) is _Constant:
        return form.value
    members = [_rebuilt(member, tensors) for member in form.members]
    if form.names is not None:
        # The results of transformers and diffusers are mappings that take their members by name.
        return form.kind(**dict(zip(form.names, members, strict=True)))
    if hasattr(form.kind, "_fields"):
        return form.kind(*members)
    return form.kind(members)


def _meta(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.dtype, tensor.device, _layout(tensor)


def _layout(tensor: Tensor) -> str:
    if tensor.is_contiguous():
        return _FIRST
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return _LAST
    return _STRIDED


def like(tensor: Tensor) -> Tensor:
    """New memory for values of that shape, laid out alike; for strided ones, one after the other."""
    is_last = _layout(tensor) == _LAST
    memory = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory)


class Whereabouts:
    """Where weights (None for a missing one) lie, and as what: all that a recording knows of them."""

    __slots__ = ("_found",)

    def __init__(self, weights: Sequence[Any]) -> None:
        self._found = _whereabouts(weights)

    def are_of(self, weights: Sequence[Any]) -> bool:
        """Whether these weights lie there; asked at every call."""
        return _whereabouts(weights) == self._found


def _whereabouts(weights: Sequence[Any]) -> tuple[list[Any], ...]:
    """In columns, which take a third of the time that rows do."""
    present = [each for each in weights if each is not None]
    missing = [index for index, each in enumerate(weights) if each is None]
    places, strides = list(map(Tensor.data_ptr, present)), list(map(Tensor.stride, present))
    return places, [each.dtype for each in present], strides, missing
