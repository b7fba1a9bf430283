"""A stand-in for CUDA graphs where there is no GPU: it records torch's operations, and is harsher than a GPU.

As a CUDA graph does, a recording reads and writes the memory it was made with and never runs the function
again. All recordings share their memory, and what is in it, inputs too, is NaN as soon as a turn ends. So a
result that was not copied out, an input that was not copied in, or a branch that depends on a value shows in
the picture instead of working by luck. Only what passes torch's dispatcher is seen: no compiled code does.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.errors import CaptureError
from lib_accel.graphs.watch import demand_no_wait, name_of

# A number that becomes a tensor is copied to a GPU from memory that a capture cannot read.
_COPIED = "lift_fresh"


class _Operation(NamedTuple):
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Tensor, ...]  # of new memory
    writes: bool  # into one of its arguments


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what is done while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[_Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        demand_no_wait(func, args)
        if name_of(func) == _COPIED:
            raise CaptureError(f"{_COPIED} waits for the device")
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        results = result if isinstance(result, (tuple, list)) else (result,)
        writes = any(each.alias_info is not None and each.alias_info.is_write for each in returns)
        if writes:
            self.operations.append(_Operation(func, args, kwargs or {}, (), True))
        elif all(each.alias_info is None for each in returns):
            new = tuple(each for each in results if isinstance(each, Tensor))
            if not _storages(new) & _storages(args):  # "_unsafe_view" says that it returns new memory
                self.operations.append(_Operation(func, args, kwargs or {}, new, False))
        return result


def _storages(values: Sequence[Any]) -> set[int]:
    return {each.untyped_storage().data_ptr() for each in values if isinstance(each, Tensor) and each.nbytes}


class TapeRecording:
    """launcher.Recording: operations and the memory they were done with."""

    def __init__(
        self,
        operations: Sequence[_Operation],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        recorder: Recorder,
    ) -> None:
        self.outputs = outputs
        self.memory = [each for operation in operations for each in operation.results]
        self._operations, self._inputs, self._recorder = list(operations), list(inputs), recorder
        self._is_spoiled = False  # since it was last at work: to fill the memory of hundreds takes long

    @property
    def size_bytes(self) -> int:
        """All that was allocated: nothing is used twice here."""
        return sum(each.nbytes for each in self.memory)

    @torch.no_grad()
    def replay(self) -> None:
        """Does the operations again."""
        assert self._operations, "replayed after it was dropped"
        self._recorder.replays += 1
        self._recorder.spoil(but=self._inputs)
        self._is_spoiled = False
        for operation in self._operations:
            results = operation.function(*operation.args, **operation.kwargs)
            if operation.writes:
                continue
            found = results if isinstance(results, (tuple, list)) else (results,)
            new = [each for each in found if isinstance(each, Tensor)]
            for known, each in zip(operation.results, new, strict=True):
                known.copy_(each)

    def drop(self) -> None:
        """What used its memory sees it spoiled."""
        _spoil(self.memory)
        self.outputs, self.memory, self._operations, self._inputs = (), [], [], []

    def spoil(self, but: Sequence[Tensor] = ()) -> None:
        """Fills its memory with NaN, as others would with anything."""
        if self._is_spoiled:
            return
        self._is_spoiled = True
        kept = {id(each) for each in but}
        _spoil([each for each in (*self.memory, *self._inputs) if id(each) not in kept])


def _spoil(tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for each in tensors:
            if each.is_floating_point():
                each.fill_(float("nan"))


class Recorder:
    """launcher.Launcher for the CPU, in tests and in trial runs of the benchmark."""

    def __init__(self) -> None:
        self.replays = 0
        self._lock = threading.Lock()
        self._recordings: weakref.WeakSet[TapeRecording] = weakref.WeakSet()
        self._thread = threading.local()

    @contextlib.contextmanager
    def turn(self, device: torch.device) -> Iterator[bool]:
        """Recordings are the caller's in the block, and spoiled after it."""
        if not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            yield True
        finally:
            self.spoil()
            self._lock.release()

    def record(
        self, function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor], device: torch.device
    ) -> TapeRecording:
        """Runs the function once, as a capture does not, and notes its operations."""
        tape = _Tape()
        self._thread.is_recording = True
        try:
            with tape:
                outputs = function()
        finally:
            self._thread.is_recording = False
        recording = TapeRecording(tape.operations, inputs, outputs, self)
        known = {each.untyped_storage().data_ptr() for each in (*recording.memory, *inputs)}
        if any(each.untyped_storage().data_ptr() not in known for each in outputs):
            raise CaptureError("the result was not computed by operations that can be seen")
        self._recordings.add(recording)
        return recording

    def spoil(self, but: Sequence[Tensor] = ()) -> None:
        """Fills the memory of all recordings with NaN."""
        for recording in list(self._recordings):
            recording.spoil(but)

    def wait(self, device: torch.device) -> None:
        """A CPU is never behind."""

    def largest_bytes(self, device: torch.device) -> int:
        """No limit of its own."""
        return sys.maxsize

    def fault(self) -> str | None:
        """Nothing is left behind by what fails."""
        return None

    def is_recording(self, device: torch.device) -> bool:
        """Whether this thread records."""
        return getattr(self._thread, "is_recording", False)
