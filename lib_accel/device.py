"""What torch's state on the current thread means for a block: autocast and devices."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import torch

# Since torch 2.4 autocast is asked by device type; before, each device had functions of its own.
_BY_DEVICE_TYPE = hasattr(torch, "get_autocast_dtype")

SUPPORTED_DEVICES = ("cpu", "cuda")

# What may fail without saying anything of the block: the next call may fit.
OUT_OF_MEMORY = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))


def device_name(device: torch.device) -> str:
    """The name of a GPU, or what torch calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def switches() -> tuple[bool, ...]:
    """What of torch's state decides which kernels an operation runs, beside dtypes and sizes."""
    cuda: Any = torch.backends.cuda
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        allows_tf32(cuda.matmul),
        allows_tf32(cudnn),
        cudnn.deterministic,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        getattr(cuda, "cudnn_sdp_enabled", bool)(),  # since torch 2.5
    )


def allows_tf32(backend: Any) -> bool:
    """Whether torch.backends.cuda.matmul or torch.backends.cudnn may round to TF32."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:  # since torch 2.9, where somebody has set it in the newer way
        return getattr(backend, "fp32_precision", "") == "tf32"


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on a device now goes into a CUDA graph."""
    return device.type == "cuda" and bool(torch.cuda.is_current_stream_capturing())


def matmul_precision() -> str:
    """The precision of float32 products, as torch.set_float32_matmul_precision takes it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # since torch 2.9, where somebody has set it for one backend and not for another
        return "high" if allows_tf32(torch.backends.cuda.matmul) else "highest"


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast would give convolutions on this device now, or None where autocast is off."""
    if _BY_DEVICE_TYPE:
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    if device_type == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def autocast_off(device_type: str) -> AbstractContextManager[None]:
    """Autocast off inside the `with` block, as it was afterwards."""
    return torch.autocast(device_type, enabled=False)


def autocast_on(device_type: str, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Autocast to `dtype` inside the `with` block, as it was afterwards."""
    return torch.autocast(device_type, dtype=dtype)


def is_compiling() -> bool:
    """Whether torch.compile is tracing the caller; not whether another thread is compiling something."""
    if hasattr(torch.compiler, "is_dynamo_compiling"):  # since torch 2.2; is_compiling is true in all threads
        return bool(torch.compiler.is_dynamo_compiling())
    # Who has not imported it compiles nothing, and importing it takes a second.
    return "torch._dynamo" in sys.modules and bool(torch._dynamo.is_compiling())
