"""How long one launch takes on a GPU, reasoned from what it asks for: no GPU has confirmed any of it.

It is for the order of tiles, of which a table keeps all that may be the fastest; so what counts is how tiles
compare, not the microseconds. The model: programs run in waves of as many as fit onto the processors at one
time. A wave takes as long as the slowest of what it needs: bytes of the memory and of the L2 cache, tensor
cores and what feeds them, float32 lanes, and what one program waits for, one thing after the other. That is
Little's law: with `n` programs there, each of which moves `b` bytes while it waits for `w` microseconds,
memory has `n * b` bytes on their way and gives no more than `n * b / w`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lib_accel.kernels.gpus import REGISTERS, Gpu

# Microseconds from the end of one kernel of a graph to where the next one's programs are under way.
LAUNCH_US = 1.5

# What a program waits for one load while others load as well: from memory, and from the L2 cache.
MEMORY_WAIT_US, CACHE_WAIT_US = 0.7, 0.3
REDUCTION_WAIT_US = 0.1  # of all threads of a program

MEMORY_SHARE = 0.9  # of a memory's bandwidth that a kernel can have
_CACHE_BYTES = 32  # that a processor gets of the L2 cache in a clock
_SHARED_BYTES = 128  # that it reads of its shared memory in a clock

_WARP = 32  # threads
_REGISTERS_AT_ONCE, _SHARED_AT_ONCE = 256, 128  # of which a warp and a program get a whole number


class Needs(NamedTuple):
    """What one program takes of a GPU."""

    registers: int  # a thread
    spilled: int  # bytes a thread that did not fit into registers
    shared: int  # bytes


class Launch(NamedTuple):
    """A kernel's call: what one program is, and what all of them together do."""

    programs: int
    warps: int  # of one program
    needs: Needs
    memory_bytes: float  # read from memory or written to it
    cache_bytes: float  # the same of the L2 cache, through which all of the former go
    waits_us: float  # of one program, one thing after the other
    operations: float = 0.0  # of float32, of all lanes, be their values needed or not
    flop: float = 0.0  # of tensor cores
    shared_bytes: float = 0.0  # that tensor cores are fed with


def resident(gpu: Gpu, warps: int, needs: Needs) -> int:
    """How many programs a processor holds at one time: the least of what each of its limits allows."""
    processor = gpu.processor
    own = _rounded(needs.registers * _WARP, _REGISTERS_AT_ONCE) * warps
    shared = _rounded(needs.shared + processor.reserved, _SHARED_AT_ONCE)
    limits = [processor.programs, processor.warps // warps, REGISTERS // max(own, 1)]
    if shared:
        limits.append(processor.shared_kib * 1024 // shared)
    return min(limits)


def waves(launch: Launch, gpu: Gpu) -> tuple[int, int]:
    """How many waves are full, and how many programs the last one has beyond them."""
    return divmod(launch.programs, gpu.processors * resident(gpu, launch.warps, launch.needs))


def launch_us(launch: Launch, gpu: Gpu) -> float:
    """Microseconds of a launch; infinite if it spills, or if a processor cannot hold one program."""
    room = resident(gpu, launch.warps, launch.needs)
    if launch.needs.spilled or not room:
        return math.inf
    full, rest = waves(launch, gpu)
    spent = full * _wave_us(launch, gpu, gpu.processors * room)
    return LAUNCH_US + spent + (_wave_us(launch, gpu, rest) if rest else 0.0)


def _wave_us(launch: Launch, gpu: Gpu, count: int) -> float:
    """Microseconds of `count` programs that are there at one time."""
    share = count / launch.programs
    # Programs are dealt out in turn: the processor that has most of them is the last to end.
    most = math.ceil(count / gpu.processors) / launch.programs
    clocks = gpu.clock_mhz  # in a microsecond
    products = gpu.tensor_tflops * 1e6 / gpu.processors
    return max(
        launch.waits_us,
        share * launch.memory_bytes / (MEMORY_SHARE * gpu.memory_gb_s * 1e3),
        most * launch.cache_bytes / (_CACHE_BYTES * clocks),
        most * launch.operations / (gpu.processor.lanes * clocks),
        most * launch.flop / products,
        most * launch.shared_bytes / (_SHARED_BYTES * clocks),
    )


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step
