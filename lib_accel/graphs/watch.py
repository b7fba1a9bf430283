"""What no capture can hold, found where it does no harm yet: in a call that is launched as always."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.errors import CaptureError

# What makes a GPU wait for the program or the program for the GPU, or is as large as its values say.
_WAITS = frozenset(
    [
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "repeat_interleave",
    ]
)
_MASKS = (torch.bool, torch.uint8)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises CaptureError, in its block, at the first operation that waits or goes from device to device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        demand_no_wait(func, args)
        result = func(*args, **(kwargs or {}))
        devices = {each.device for each in _tensors((args, kwargs or {}, result))}
        if len(devices) > 1:
            raise CaptureError(f"{name_of(func)} goes from {' to '.join(sorted(map(str, devices)))}")
        return result


def name_of(func: Any) -> str:
    """The operation's name, without its package and overload."""
    return str(func._schema.name).split("::")[1]


def demand_no_wait(func: Any, args: Sequence[Any]) -> None:
    """Raises CaptureError for an operation that waits for the device."""
    name = name_of(func)
    if name in _WAITS or (name == "index" and _has_mask(args[1])):
        raise CaptureError(f"{name} waits for the device")


def _has_mask(places: Sequence[Tensor | None]) -> bool:
    return any(each is not None and each.dtype in _MASKS for each in places)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
