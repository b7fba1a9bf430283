"""Recordings on NVIDIA GPUs: CUDA graphs, captured and replayed by us.

Not by torch.cuda.graph, which synchronises, collects garbage and empties torch's cache at each capture, nor
by Inductor, whose graphs belong to the thread that made them.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.device import OUT_OF_MEMORY
from lib_accel.errors import CaptureError, reason_of

_log = logging.getLogger(__name__)

# Another thread may draw a preview or empty the cache meanwhile: torch's default would end the capture then.
_MODE = "thread_local"

# Torch cannot free what it has cached while a capture is under way, so that it is done before where this
# much is not free.
_SPARE_BYTES = 2 * 2**30
_WORTH_BYTES = 2**28  # of what is cached; less is not worth to allocate it anew

_NO_MEMORY = "out of memory"  # in the message of what CUDA itself, and not torch's allocator, had none for

_SHARE = 8  # one part of so many of a GPU's memory may be for graphs


class CudaRecording:
    """launcher.Recording: one instantiated graph."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        outputs: Sequence[Tensor],
        size_bytes: int,
        alive: weakref.WeakSet[CudaRecording],
    ) -> None:
        self.outputs, self.size_bytes = outputs, size_bytes
        self._graph: torch.cuda.CUDAGraph | None = graph
        self._alive = alive
        alive.add(self)

    def replay(self) -> None:
        """Launches the graph on the current stream."""
        assert self._graph is not None, "replayed after it was dropped"
        self._graph.replay()

    def drop(self) -> None:
        """Nothing of it may be at work; see Launcher.wait."""
        self.outputs = ()
        if self._graph is not None:
            self._graph.reset()
            self._graph = None
            self._alive.discard(self)


class _Place:
    """What the graphs of one device share."""

    def __init__(self, device: torch.device) -> None:
        self.lock = threading.Lock()
        # That captures are made on.
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.last: torch.cuda.Stream | None = None  # that a graph was launched on
        self.alive: weakref.WeakSet[CudaRecording] = weakref.WeakSet()
        self._pool = torch.cuda.graph_pool_handle()

    def pool(self) -> Any:
        """That of the graphs there are; torch takes none back whose last graph is gone."""
        if not self.alive:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool


class CudaLauncher:
    """launcher.Launcher for the GPUs of this process."""

    def __init__(self) -> None:
        self._places: dict[torch.device, _Place] = {}
        self._lock = threading.Lock()
        self._fault: str | None = None

    def _place(self, device: torch.device) -> _Place:
        with self._lock:
            if device not in self._places:
                self._places[device] = _Place(device)
            return self._places[device]

    @contextlib.contextmanager
    def turn(self, device: torch.device) -> Iterator[bool]:
        """The memory of graphs, also behind work that another stream was given."""
        place = self._place(device)
        if not place.lock.acquire(blocking=False):
            yield False
            return
        try:
            current = torch.cuda.current_stream(device)
            if place.last is not None and place.last != current:
                current.wait_stream(place.last)
            place.last = current
            yield True
        finally:
            place.lock.release()

    def record(
        self, function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor], device: torch.device
    ) -> CudaRecording:
        """Captures the function on a stream of its own.

        That the function has just run on this thread makes the handles of cuBLAS and cuDNN, which may not be
        made during a capture. Their workspaces on this stream come from the graphs' own pool, as nothing else
        runs on it.
        """
        place = self._place(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), _undisturbed():
            self.wait(device)
            idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            if idle > _WORTH_BYTES and torch.cuda.mem_get_info(device)[0] < _SPARE_BYTES:
                torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(device)
            pool = place.pool()
            try:
                with torch.cuda.stream(place.stream):
                    outputs = _captured(graph, pool, function)
            except _UncleanError as error:
                _clean_up(place, pool, device)
                if _NO_MEMORY in str(error):
                    raise torch.cuda.OutOfMemoryError(str(error)) from error
                self._fault = f"a capture failed, restart to have CUDA graphs again: {error}"
                _log.error("no CUDA graphs any more: %s", error)
                cause = error.__cause__
                if cause is None or isinstance(cause, Exception):
                    raise
                raise cause from None  # somebody ends the program
            torch.cuda.current_stream(device).wait_stream(place.stream)
            grown = torch.cuda.memory_reserved(device) - before
        return CudaRecording(graph, outputs, max(grown, 0), place.alive)

    def wait(self, device: torch.device) -> None:
        """For the current stream, and that of the last graph; not for the device: others may be capturing."""
        torch.cuda.current_stream(device).synchronize()
        last = self._place(device).last
        if last is not None:
            last.synchronize()

    def largest_bytes(self, device: torch.device) -> int:
        """A share of its memory: what graphs hold, nobody else can have, and on a small GPU all is needed."""
        return int(torch.cuda.get_device_properties(device).total_memory) // _SHARE

    def fault(self) -> str | None:
        """That a capture failed so that torch may not be as it was."""
        return self._fault

    def is_recording(self, device: torch.device) -> bool:
        """Whether the current stream is being captured."""
        return torch.cuda.is_current_stream_capturing()


class _UncleanError(CaptureError):
    """A capture that could not be ended as it should be. The message is the reason."""


def _captured(
    graph: torch.cuda.CUDAGraph, pool: Any, function: Callable[[], Sequence[Tensor]]
) -> Sequence[Tensor]:
    try:
        graph.capture_begin(pool=pool, capture_error_mode=_MODE)
        try:
            outputs = function()
        except BaseException as error:
            _end(graph, error)
            raise
        _end(graph)
    except (*OUT_OF_MEMORY, CaptureError):
        raise
    except Exception as error:
        raise CaptureError(reason_of(error)) from error
    return outputs


def _end(graph: torch.cuda.CUDAGraph, cause: BaseException | None = None) -> None:
    """Ends a capture, which `cause` may have made invalid."""
    try:
        graph.capture_end()
    except RuntimeError as error:
        cause = cause or error
        raise _UncleanError(reason_of(cause)) from cause


def _clean_up(place: _Place, pool: Any, device: torch.device) -> None:
    """Ends for torch what it takes for a capture under way.

    An operation that CUDA forbids makes a capture invalid, and torch (2.1 to 2.12) then forgets to tell its
    allocator, which frees nothing any more, and its random numbers, which cannot be drawn any more. The
    allocator is told by the functions that Inductor uses (torch/_inductor/cudagraph_trees.py), whose names
    and arguments depend on the version; random numbers by the end of another capture.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    for name, arguments in (
        ("_cuda_endAllocateToPool", (index, pool)),
        ("_cuda_endAllocateCurrentStreamToPool", (index, pool)),
        ("_cuda_endAllocateCurrentStreamToPool", (index,)),
    ):
        end = getattr(torch._C, name, None)
        if end is not None:
            with contextlib.suppress(TypeError, RuntimeError), torch.cuda.stream(place.stream):
                end(*arguments)
                break
    with contextlib.suppress(Exception), torch.cuda.stream(place.stream):  # there is nothing left to try
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode=_MODE)
        try:
            torch.zeros(1, device=device)
        finally:
            graph.capture_end()


@functools.cache
def _collect_once() -> None:
    gc.collect()


_CAPTURE = threading.Lock()  # of all devices, since the two switches below are the process's


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing is collected that frees or destroys what may not be freed now, and no algorithm is tried."""
    with _CAPTURE:
        _collect_once()
        was_collecting, was_trying = gc.isenabled(), torch.backends.cudnn.benchmark
        gc.disable()
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = was_trying
            if was_collecting:
                gc.enable()


@functools.cache
def launcher_of_this_process() -> CudaLauncher:
    """The one that engines share."""
    return CudaLauncher()
