"""Counts what torch is asked to do in each step of a sampler, by where in the step it is asked.

Needs torch and the standard library only, since its text is sent into webuis too. On a CPU nothing waits for
a GPU, so that what may wait is counted by its operation: values of a tensor that Python reads, and what is
moved between devices. Where the tensor would lie is not seen here; the place in the code is noted for that.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# The parts of a step, from the outermost.
AROUND, UNET, BLOCKS = "around", "unet", "blocks"

# What an operation is: work for a kernel; arithmetic on single numbers, most of which hosts keep on the CPU;
# a view or an allocation, which is no work on the device; or what may make Python wait for the device.
LAUNCH, NUMBER, VIEW, WAIT = "launch", "number", "view", "wait"

# Views and allocations, beside the operations whose result is a view by their schema.
_NO_WORK = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "lift_fresh", "lift", "is_same_size", "sym_size", "sym_stride", "device"),
)

# Operations that end when their values, or the number of them, are known to Python.
_READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")

# Calls that read, or move, and are no operation where there is one device only.
_READING_CALLS = ("cpu", "numpy", "tolist", "__array__")
_MOVING_CALLS = ("to", "cuda", "tensor", "as_tensor", "from_numpy")

# Code that acts for its caller, and the folders that the path of a place begins with.
_PASSED_THROUGH = ("/torch/", "/einops/")
_ROOTS = (
    *("/site-packages/", "/lib_accel/", "/extensions/", "/extensions-builtin/", "/repositories/"),
    *("/modules/", "/tests/"),
)


class Asked(NamedTuple):
    """One thing that torch was asked for; `place` is "FILE:LINE FUNCTION", outside of torch."""

    part: str
    kind: str
    operation: str
    place: str


class StepCounter:
    """Counts in the block of `counting`; `next_step` begins another step, `marked` names parts of a model."""

    def __init__(self) -> None:
        self.steps: list[Counter[Asked]] = []
        self._parts = [AROUND]

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts on this thread in the block, from an empty list of steps."""
        self.steps, self._parts = [Counter()], [AROUND]  # an interrupted step left its parts open
        with _Calls(self), _Operations(self):
            yield

    def next_step(self) -> None:
        """What follows belongs to another step."""
        self.steps.append(Counter())

    def note(self, kind: str, operation: str) -> None:
        """Counts what the running code asks for."""
        self.steps[-1][Asked(self._parts[-1], kind, operation, _place())] += 1

    @contextlib.contextmanager
    def marked(self, part: str, *modules: nn.Module) -> Iterator[None]:
        """What these modules do in the block counts as this part."""
        handles = [
            handle
            for module in modules
            for handle in (
                module.register_forward_pre_hook(lambda *_: self._parts.append(part)),
                module.register_forward_hook(lambda *_: self._leave()),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:  # a hook's result would replace the module's
        self._parts.pop()

    def told(self) -> list[list[tuple[Any, ...]]]:
        """The whole steps but the first, into which merging networks falls: (part, ..., place, how often)."""
        return [[(*asked, count) for asked, count in step.items()] for step in self.steps[2:-1]]


class _Operations(TorchDispatchMode):
    """Notes each operation that reaches a device."""

    def __init__(self, counter: StepCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        name = func._schema.name.rpartition("::")[2]
        if name in _READS or _has_mask(name, args):
            kind = WAIT
        elif name in _NO_WORK or _is_view(func):
            kind = VIEW
        else:
            kind = NUMBER if all(each.dim() == 0 for each in _tensors((args, result))) else LAUNCH
        self._counter.note(kind, name)
        return result


class _Calls(TorchFunctionMode):
    """Notes each call that would read from, or move to, another device."""

    def __init__(self, counter: StepCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        is_move = name in _MOVING_CALLS and (name != "to" or _names_device(args[1:], given))
        if is_move or name in _READING_CALLS:
            self._counter.note(WAIT, name)
        return func(*args, **given)


def _names_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether arguments of Tensor.to name a device, be it by a tensor that lies there."""
    named = (*args[:1], kwargs.get("device"), kwargs.get("other"))
    return any(isinstance(each, (str, int, torch.device, Tensor)) for each in named)


def _has_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation picks by a mask: how many are picked must be known before it can end."""
    if name != "index" or len(args) < 2:
        return False
    return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether the operation only looks at its argument in another way."""
    aliases = [each.alias_info for each in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _place() -> str:
    """Where the running operation was asked for, outside of torch and of this file."""
    here = _place.__code__.co_filename
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if path != here and not any(each in path for each in _PASSED_THROUGH):
            break
        frame = frame.f_back
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"


@functools.cache
def _short(path: str) -> str:
    for root in _ROOTS:
        _, found, after = path.rpartition(root)
        if found:
            return after if root == _ROOTS[0] else root[1:] + after
    return Path(path).name
