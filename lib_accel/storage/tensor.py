"""A tensor that holds codes and scales, and is a plain matrix to whatever computes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from lib_accel.storage.formats import Format, StorageError, decode, encode

_ADVICE = "call handle.store_weights(None) before"

# What gives another stored weight: copies and moves. Anything else is computed with the matrix in full.
_KEEPING = frozenset(
    {
        torch.ops.aten.detach.default,
        torch.ops.aten.alias.default,
        torch.ops.aten.clone.default,
        torch.ops.aten._to_copy.default,
    }
)


class StoredWeight(Tensor):
    """A matrix of `dtype` and shape (out, in) that takes one byte a number; `full` makes the matrix.

    Any operation of torch takes it, and has the matrix made for itself: the host's modules, our functions and
    autocast go on as with the matrix. Writing to it raises StorageError: what is written would be lost.
    """

    codes: Tensor  # (out, in), int8 or float8_e4m3fn
    scale: Tensor  # (out, 1), float32
    serial: int  # of what it was loaded as; copies have the same

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, dtype: torch.dtype, serial: int) -> StoredWeight:
        make: Any = Tensor._make_wrapper_subclass
        made: StoredWeight = make(cls, codes.shape, dtype=dtype, device=codes.device)
        return made

    def __init__(self, codes: Tensor, scale: Tensor, dtype: torch.dtype, serial: int) -> None:
        self.codes, self.scale, self.serial = codes, scale, serial

    @classmethod
    def of(cls, full: Tensor, kind: Format, dtype: torch.dtype, serial: int) -> StoredWeight:
        """Of a matrix, to be one of `dtype`."""
        return cls(*encode(full, kind), dtype, serial)

    def full(self) -> Tensor:
        """The matrix, in new memory."""
        return decode(self.codes, self.scale, self.dtype)

    @property
    def stored_bytes(self) -> int:
        """Memory of codes and scales; `nbytes` is that of the matrix."""
        return self.codes.nbytes + self.scale.nbytes

    def replace(self, full: Tensor, kind: Format) -> None:
        """Makes it another matrix, in the memory that it has."""
        codes, scale = encode(full, kind)
        self.codes.copy_(codes)
        self.scale.copy_(scale)

    def data_ptr(self) -> int:
        """Raises StorageError: whoever asks where a matrix lies wants to read it there."""
        raise StorageError(f"a weight is stored in eight bits and lies nowhere in full; {_ADVICE}")

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredWeight:
        if id(self) not in memo:
            memo[id(self)] = torch.nn.Parameter(self.detach().clone(), requires_grad=False)
        copied: StoredWeight = memo[id(self)]
        return copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"StoredWeight({tuple(self.shape)}, {self.dtype} in {self.codes.dtype}, {self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], tuple[torch.dtype, int]]:
        return ["codes", "scale"], (self.dtype, self.serial)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: tuple[torch.dtype, int], *_: Any
    ) -> StoredWeight:
        return StoredWeight(inner["codes"], inner["scale"], *context)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch._has_compatible_shallow_copy_type:
            return False  # else old versions of torch move a module's weight without its codes
        if func is F.linear:  # as below, in one pass through the dispatcher
            args, kwargs = _in_full(args), _in_full(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _KEEPING and (kwargs.get("dtype") or torch.float32).is_floating_point:
            stored: StoredWeight = args[0]
            dtype = kwargs.pop("dtype", None) or stored.dtype
            with _as_it_was_made(stored):
                codes, scale = (func(part, *args[1:], **kwargs) for part in (stored.codes, stored.scale))
                return cls(codes, scale, dtype, stored.serial)
        if any(isinstance(each, cls) for each in tree_flatten(_written(func, args, kwargs))[0]):
            raise StorageError(f"{func} would write to a weight that is stored in eight bits; {_ADVICE}")
        return func(*_in_full(args, _full_to_view), **_in_full(kwargs, _full_to_view))


def _in_full(tree: Any, full: Callable[[StoredWeight], Tensor] = StoredWeight.full) -> Any:
    return tree_map_only(StoredWeight, full, tree)


def _as_it_was_made(stored: StoredWeight) -> AbstractContextManager[None]:
    """torch takes for a view of what was made outside of inference mode only what was made there too."""
    return torch.inference_mode(stored.is_inference())


def _full_to_view(stored: StoredWeight) -> Tensor:
    with _as_it_was_made(stored):
        return stored.full()


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """What of its arguments an operation writes to."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return found
