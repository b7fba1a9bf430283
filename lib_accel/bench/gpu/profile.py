"""Where a call's time goes: its largest kernels, and operations against what they need at least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lib_accel.bench.gpu.counting import costs, kernels_of, profiled
from lib_accel.bench.gpu.floors import floor_ms
from lib_accel.bench.gpu.rows import Figures, Stand, placed
from lib_accel.bench.gpu.sides import SideError

_CALLS = 3
_KERNELS, _OPERATIONS = 3, 12  # how many are told
_TOLD = ("operators", "formats")  # of what a side says about itself
_NAME = 90  # letters of a kernel's name, which may be a page long


def profile_row(stand: Stand, name: str) -> Figures:
    """The three largest kernels, and the roofline of the operations, of a side of the case."""
    device = stand.stage.where.device
    with placed(name, stand) as one:
        one.prepare()
        with one.turn() as call:
            call()
            events = profiled(call, device, _CALLS)
            counted = costs(call)
        about = {key: value for key, value in one.about().items() if key in _TOLD}
    ran = kernels_of(events) if device.type == "cuda" else _outermost(events)
    if not ran:
        raise SideError("the profiler saw no kernel")
    total = sum(_ms(event, device) for event in ran) / _CALLS
    roofline = _roofline(events, counted, device)
    return {
        "kernels_ms": total,
        "kernels": len(ran) // _CALLS,
        "largest": _largest(ran, device, total),
        "roofline": roofline[:_OPERATIONS],
        # Kernels that no operation of torch launches: ours in Triton, and those of graphs.
        "outside_ms": max(0.0, total - sum(each["ms"] for each in roofline)),
        "about": about,
    }


def _largest(ran: Sequence[Any], device: torch.device, total: float) -> list[Figures]:
    by_name: dict[str, list[float]] = {}
    for event in ran:
        by_name.setdefault(event.name, []).append(_ms(event, device))
    ordered = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    return [
        {
            "kernel": kernel[:_NAME],
            "launches": len(times) // _CALLS,
            "ms": sum(times) / _CALLS,
            "share": sum(times) / _CALLS / total,
        }
        for kernel, times in ordered[:_KERNELS]
    ]


def _roofline(events: Sequence[Any], counted: Any, device: torch.device) -> list[Figures]:
    """By operation: its time, the least that its FLOP and bytes take, and that as a share of the time.

    What a graph replays is no operation, and has no row.
    """
    times: dict[str, float] = {}
    for event in events:
        name = _operation(event)
        # What an operation calls in turn is its own: a convolution's kernels are launched by cuDNN's.
        if name in counted.calls and not any(_operation(each) in counted.calls for each in _callers(event)):
            spent = event.device_time_total if device.type == "cuda" else event.cpu_time_total
            times[name] = times.get(name, 0.0) + spent / 1000 / _CALLS
    rows: list[Figures] = []
    for name, ms in sorted(times.items(), key=lambda item: -item[1]):
        least = floor_ms(counted.flop[name], counted.bytes[name])
        rows.append(
            {
                "operation": name,
                "calls": counted.calls[name],
                "ms": ms,
                "floor_ms": least,
                "floor_share": least / ms if ms else None,
            }
        )
    return rows


def _operation(event: Any) -> str:
    """The event's name as Costs has those of operations."""
    return str(event.name).replace("::", ".")


def _callers(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def _outermost(events: Sequence[Any]) -> list[Any]:
    """Operations that no other called: where there are no kernels, they stand for them."""
    return [event for event in events if event.cpu_parent is None]


def _ms(event: Any, device: torch.device) -> float:
    if device.type == "cuda":
        return float(event.time_range.elapsed_us()) / 1000
    return float(event.cpu_time_total) / 1000
