"""What a call launches: kernels and graphs by torch's profiler on a GPU, operations of torch elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from lib_accel.bench.ops import digest, operations

# Calls of CUDA that start a kernel, and the one that starts a graph; names differ between versions.
_KERNEL_CALLS = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel")
_GRAPH_CALL = "cudaGraphLaunch"
_NO_KERNELS = ("Memcpy", "Memset")

_DIGITS = 16  # of a fingerprint


def launches(call: Callable[[], Any], device: torch.device, *, has_operations: bool) -> dict[str, Any]:
    """How much a call launches, and fingerprints of the list in order: equal lists are equal work.

    "launches" are kernels and graphs that the program starts on a GPU, or operations of torch on a CPU, which
    "counted" says. "kernels" ran on the GPU, those inside graphs too. "operations" pass torch's dispatcher;
    has_operations: whether they are to be counted, which compiled code does not survive.
    """
    told: dict[str, Any] = {}
    if device.type != "cuda" and not has_operations:
        return {"launches": None, "counted": "compiled code is no operations"}
    if has_operations:
        names = operations(call)
        told = {"operations": len(names), "operations_list": digest(names)[:_DIGITS]}
    if device.type != "cuda":
        return told | {"launches": told["operations"], "counted": "operations"}
    events = profiled(call, device, 1)
    kernels = [event.name for event in kernels_of(events)]
    if not kernels:  # some systems do not let the profiler see the GPU
        return told | {"launches": None, "counted": "the profiler saw no kernel"}
    graphs = sum(event.name.startswith(_GRAPH_CALL) for event in events)
    single = sum(event.name.startswith(_KERNEL_CALLS) for event in events)
    return told | {
        "launches": single + graphs,
        "counted": "kernels and graphs",
        "graph_launches": graphs,
        "kernels": len(kernels),
        "kernels_list": digest(kernels)[:_DIGITS],
    }


def profiled(call: Callable[[], Any], device: torch.device, calls: int) -> list[Any]:
    """Events of torch's profiler over so many calls."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return list(profile.events() or ())


def kernels_of(events: list[Any]) -> list[Any]:
    """The kernels among them that ran on the GPU, in the order in which they began."""
    ran = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not event.name.startswith(_NO_KERNELS)
    ]
    return sorted(ran, key=lambda event: event.time_range.start)


class Costs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on: by operation how often it was called, its FLOP, and bytes that it read and wrote.

    FLOP are those of matrix products, convolutions and attention, by torch's own formulas.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, int] = {}
        self.flop: dict[str, float] = {}
        self.bytes: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        result = func(*args, **(kwargs or {}))
        if any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns):
            return result  # a view: nothing moves
        name = func._schema.name.replace("::", ".")
        formula = flop_registry.get(func._overloadpacket)
        flop = formula(*args, **(kwargs or {}), out_val=result) if formula is not None else 0
        moved = _size_bytes((args, kwargs, result))
        self.calls[name] = self.calls.get(name, 0) + 1
        self.flop[name] = self.flop.get(name, 0.0) + flop
        self.bytes[name] = self.bytes.get(name, 0.0) + moved
        return result


def costs(call: Callable[[], Any]) -> Costs:
    """Those of one call."""
    counted = Costs()
    with counted:
        call()
    return counted


def _size_bytes(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, dict):
        values = tuple(values.values())
    return sum(map(_size_bytes, values)) if isinstance(values, (tuple, list)) else 0
