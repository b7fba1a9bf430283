"""Common NVIDIA GPUs by the name that torch gives them, and what of them decides how long a kernel takes.

Sources: NVIDIA's architecture whitepapers (Turing TU102, Ampere GA100 and GA102, Ada, Hopper, RTX Blackwell)
and data sheets (T4, A10, L4, L40S, H200, HGX B200); limits of a processor: "Technical Specifications per
Compute Capability" in the CUDA programming guide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import torch


class Processor(NamedTuple):
    """What one streaming multiprocessor of a compute capability holds, and does in a clock."""

    warps: int  # that may be there at one time
    programs: int  # likewise
    shared_kib: int  # shared memory of all programs together
    reserved: int  # bytes of it that each program takes beside its own
    lanes: int  # float32 operations a clock
    reads_shared: bool = False  # whether tensor cores take operands from shared memory, not from registers


REGISTERS = 64 * 1024  # of 32 bits, of any of these processors

# By compute capability times ten.
PROCESSORS: Mapping[int, Processor] = MappingProxyType(
    {
        75: Processor(warps=32, programs=16, shared_kib=64, reserved=0, lanes=64),
        80: Processor(warps=64, programs=32, shared_kib=164, reserved=1024, lanes=64),
        86: Processor(warps=48, programs=16, shared_kib=100, reserved=1024, lanes=128),
        89: Processor(warps=48, programs=24, shared_kib=100, reserved=1024, lanes=128),
        90: Processor(warps=64, programs=32, shared_kib=228, reserved=1024, lanes=128, reads_shared=True),
        100: Processor(warps=64, programs=32, shared_kib=228, reserved=1024, lanes=128, reads_shared=True),
        120: Processor(warps=48, programs=24, shared_kib=100, reserved=1024, lanes=128),
    }
)


class Gpu(NamedTuple):
    """One model, with the figures at which it is sold: what it reaches is less, in about that relation."""

    name: str
    names: str  # a regular expression of what torch calls it, wholly
    capability: int  # times ten
    processors: int
    clock_mhz: int  # at which its tensor cores do `tensor_tflops`
    memory_gb_s: float
    l2_mib: float
    tensor_tflops: float  # dense products of half precision, summed in float32

    @property
    def processor(self) -> Processor:
        """What each of its processors holds."""
        return PROCESSORS[self.capability]

    @property
    def slug(self) -> str:
        """Its name as part of a file's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())


def _geforce(model: str) -> str:
    """Names of a card for desktops: drivers before 2021 leave NVIDIA out, and cards of laptops say so."""
    return rf"(NVIDIA )?GeForce RTX {model}"


GPUS: tuple[Gpu, ...] = (
    Gpu("T4", "(Tesla|NVIDIA) T4", 75, 40, 1590, 320, 4, 65),
    Gpu("RTX 2080 Ti", _geforce("2080 Ti"), 75, 68, 1635, 616, 5.5, 56.9),
    Gpu("A100 40 GB", "(NVIDIA )?A100-(SXM4|PCIE)-40GB", 80, 108, 1410, 1555, 40, 312),
    Gpu("A100 80 GB", "(NVIDIA )?A100(-SXM4-80GB| 80GB PCIe)", 80, 108, 1410, 2039, 40, 312),
    Gpu("A10", "(NVIDIA )?A10", 86, 72, 1695, 600, 6, 125),
    Gpu("RTX 3060", _geforce("3060"), 86, 28, 1777, 360, 3, 25.5),
    Gpu("RTX 3060 Ti", _geforce("3060 Ti"), 86, 38, 1665, 448, 4, 32.4),
    Gpu("RTX 3070", _geforce("3070"), 86, 46, 1725, 448, 4, 40.6),
    Gpu("RTX 3080", _geforce("3080"), 86, 68, 1710, 760, 5, 59.5),
    Gpu("RTX 3090", _geforce("3090"), 86, 82, 1695, 936, 6, 71.0),
    Gpu("RTX 4060", _geforce("4060"), 89, 24, 2460, 272, 24, 30.2),
    Gpu("RTX 4060 Ti", _geforce("4060 Ti"), 89, 34, 2535, 288, 32, 44.1),
    Gpu("RTX 4070", _geforce("4070"), 89, 46, 2475, 504, 36, 58.3),
    Gpu("RTX 4070 Ti", _geforce("4070 Ti"), 89, 60, 2610, 504, 48, 80.2),
    Gpu("RTX 4080", _geforce("4080"), 89, 76, 2505, 717, 64, 97.5),
    Gpu("RTX 4090", _geforce("4090"), 89, 128, 2520, 1008, 72, 165.2),
    Gpu("L4", "NVIDIA L4", 89, 58, 2040, 300, 48, 121),
    Gpu("L40S", "NVIDIA L40S", 89, 142, 2520, 864, 96, 362),
    Gpu("H100 PCIe", "NVIDIA H100 PCIe", 90, 114, 1620, 2039, 50, 756),
    Gpu("H100 SXM", "NVIDIA H100 80GB HBM3", 90, 132, 1830, 3350, 50, 989),
    Gpu("H200", "NVIDIA H200", 90, 132, 1830, 4800, 50, 989),
    Gpu("B200", "NVIDIA B200", 100, 148, 1850, 8000, 126, 2250),
    Gpu("RTX 5070", _geforce("5070"), 120, 48, 2512, 672, 48, 61.7),
    Gpu("RTX 5080", _geforce("5080"), 120, 84, 2617, 960, 64, 112.6),
    Gpu("RTX 5090", _geforce("5090"), 120, 170, 2407, 1792, 96, 209.5),
)


@cache
def gpu_of(name: str) -> Gpu | None:
    """The GPU that torch.cuda.get_device_name calls so; None for any other, and for a part of one (MIG)."""
    return next((gpu for gpu in GPUS if re.fullmatch(gpu.names, name)), None)


@cache
def gpu_on(device: torch.device) -> Gpu | None:
    """The GPU that a device is; None for any that is not in the table."""
    return gpu_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def floor_us(gpu: Gpu, flop: float, size_bytes: float) -> float:
    """Microseconds that so much arithmetic of tensor cores and so many bytes take at least on that GPU."""
    return max(flop / (gpu.tensor_tflops * 1e6), size_bytes / (gpu.memory_gb_s * 1e3))
