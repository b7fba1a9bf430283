"""What all kernels ask before they run: is Triton here, and are these tensors that it can take?"""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lib_accel.device import is_compiling
from lib_accel.requirements import installed_version, is_older

OLDEST_TRITON = "3.0"
OLDEST_CAPABILITY = (7, 5)  # the oldest that every kernel is compiled for in the tests
_BFLOAT16_CAPABILITY = (8, 0)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# A kernel numbers its programs, and the elements of one image, in 32 bits.
INT32 = 2**31 - 1


def why_not_tensors(*tensors: Tensor | None) -> tuple[str, ...]:
    """Reasons for which no kernel takes these tensors together; empty if one can. None is no tensor."""
    present = [tensor for tensor in tensors if tensor is not None]
    device = present[0].device
    reasons = list(_why_not_device(device))
    if any(tensor.device != device for tensor in present):
        reasons.append(f"tensors are on {_listed(tensor.device for tensor in present)}, needs one device")
    if unfit := [tensor.dtype for tensor in present if tensor.dtype not in DTYPES]:
        reasons.append(f"dtype is {_listed(unfit)}, needs one of {_listed(DTYPES)}")
    if not all(map(is_plain, present)):
        kinds = _listed(type(tensor).__name__ for tensor in present)
        reasons.append(f"tensors are {kinds}, needs plain ones")
    if any(tensor.numel() == 0 for tensor in present):
        reasons.append("a tensor is empty")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present):
        reasons.append("gradients are asked for, and the kernels have none")
    if is_compiling():
        reasons.append("torch.compile is tracing, and fuses plain torch itself")
    if device.type == "cuda" and any(tensor.dtype is torch.bfloat16 for tensor in present):
        reasons += _why_not_bfloat16(device)
    return tuple(reasons)


def why_not_vectors(length: int, **vectors: Tensor | None) -> tuple[str, ...]:
    """Reasons for which weights and biases are not contiguous vectors of `length`; empty if they are."""
    return tuple(
        f"{name} is {tuple(vector.shape)} with strides {vector.stride()}, needs ({length},) and contiguous"
        for name, vector in vectors.items()
        if vector is not None and (vector.shape != (length,) or not vector.is_contiguous())
    )


def why_not_programs(count: int) -> tuple[str, ...]:
    """The reason for which that many programs cannot be launched at once; empty if they can."""
    return () if count <= INT32 else (f"{count} programs, one launch has at most {INT32}",)


def is_plain(tensor: Tensor) -> bool:
    """Whether it is a tensor of torch's own, whose memory holds what its shape says."""
    return type(tensor) in (Tensor, nn.Parameter)


def is_interpreted() -> bool:
    """Whether Triton interprets kernels on CPU tensors, as in tests: slow, but the same numbers."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one inside the `with` block, since Triton launches on that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def programs(name: str) -> Any:
    """The module of that name in `programs/`, which imports Triton. Only where `why_not` found no reason."""
    return importlib.import_module(f"lib_accel.kernels.programs.{name}")


@cache
def triton_dtype(dtype: torch.dtype) -> Any:
    """What Triton calls one of DTYPES."""
    language = importlib.import_module("triton.language")
    return getattr(language, str(dtype).removeprefix("torch."))


def _why_not_device(device: torch.device) -> tuple[str, ...]:
    if device.type == "cuda":
        return _why_not_gpu(device)
    if device.type != "cpu" or not is_interpreted():
        return (f"device is {device.type}, needs cuda",)
    return why_not_triton()


@cache
def _why_not_gpu(device: torch.device) -> tuple[str, ...]:
    reasons = list(why_not_triton())
    if torch.version.hip:
        reasons.append("this torch is built for ROCm, and the kernels were not tried there")
    elif (capability := torch.cuda.get_device_capability(device)) < OLDEST_CAPABILITY:
        reasons.append(f"the GPU has capability {capability}, needs {OLDEST_CAPABILITY} or newer")
    return tuple(reasons)


@cache
def _why_not_bfloat16(device: torch.device) -> tuple[str, ...]:
    capability = torch.cuda.get_device_capability(device)
    if capability >= _BFLOAT16_CAPABILITY:
        return ()
    return (f"bfloat16 on a GPU of capability {capability}, needs {_BFLOAT16_CAPABILITY} or newer",)


@cache
def why_not_triton() -> tuple[str, ...]:
    version = installed_version("triton")
    if version is None:
        return ("Triton is not installed",)
    if is_older(version, OLDEST_TRITON):
        return (f"Triton {version} is older than {OLDEST_TRITON}",)
    try:
        importlib.import_module("triton")
    except (
        ImportError,
        OSError,
        RuntimeError,
        AttributeError,
    ) as error:  # half an installation, or no driver
        return (f"Triton {version} cannot be imported: {error}",)
    return ()


def _listed(values: Any) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
