"""SageAttention: query and key in 8 bits, in 2.x on some GPUs the value as well. It changes the picture.

The package `sageattention` is imported at the first call.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from torch import Tensor

from lib_accel.attention.backend import HALVES, Backend
from lib_accel.attention.case import Case
from lib_accel.kernels.support import current
from lib_accel.requirements import installed_version, is_older

# Its Triton kernels take keys in blocks of that many, and weigh what the last block lacks as keys of zeros: a
# prompt of 77 tokens gets 51 of them, and a result that is more than a quarter off.
_BLOCK = 64


def _run(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    smoothing: dict[str, Any] = {}
    if is_older(_version() or "", "2"):  # it would subtract the mean from the caller's tensor
        key = key - key.mean(1, keepdim=True)
        smoothing = {"smooth_k": False}
    with current(query.device):  # 2.x sets the current device and leaves it so
        mixed: Tensor = _package().sageattn(
            query, key, value, tensor_layout="NHD", sm_scale=scale, **smoothing
        )
    return mixed


@cache
def _package() -> Any:
    return importlib.import_module("sageattention")


@cache
def _version() -> str | None:
    return installed_version("sageattention")


def _why_not(case: Case) -> list[str]:
    if _version() is None:
        return ["sageattention is not installed"]
    reasons = []
    if case.size not in SAGE.tiles:
        reasons.append(f"heads of {case.size}, needs one of {SAGE.tiles}")
    if case.source % _BLOCK:
        reasons.append(f"{case.source} keys, needs a multiple of {_BLOCK}")
    return reasons


SAGE = Backend(
    name="sage",
    run=_run,
    capability=(8, 0),
    dtypes=HALVES,
    largest=128,
    tiles=(64, 128),
    is_deterministic=False,
    why_not=_why_not,
)
