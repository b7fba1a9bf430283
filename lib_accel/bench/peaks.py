"""The most memory that torch holds at once during a call."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

_MIB = 2**20


class Peak(NamedTuple):
    """In MiB."""

    allocated: float  # of tensors: on a CPU those of the call alone, on a GPU all that there are
    reserved: float | None = None  # what torch took of the GPU for them; None on a CPU


def peak(call: Callable[[], Any], device: torch.device) -> Peak:
    """The peak of one call, which should have been called before; on a CPU what torch's allocator tells."""
    if device.type != "cuda":
        return Peak(peak_bytes(call) / _MIB)
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return Peak(torch.cuda.max_memory_allocated(device) / _MIB, torch.cuda.max_memory_reserved(device) / _MIB)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Bytes that a call on a CPU holds at most beyond what there was before, by the order of allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    del kept  # alive until here, as it would be for the caller
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=_when):
        now += event.nbytes()
        most = max(most, now)
    return most


def _when(event: Any) -> float:
    """In a unit of its own; torch 2.1 counts microseconds."""
    return float(event.start_ns() if hasattr(event, "start_ns") else event.start_us())
