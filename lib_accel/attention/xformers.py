"""xformers' attention, where that package is installed: it chooses among FlashAttention 3, 2 and CUTLASS.

The package is imported at the first call. One that was built for another torch has no operator then, and says
so by an error.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lib_accel.attention.backend import HALVES, Backend
from lib_accel.attention.case import Case
from lib_accel.requirements import installed_version


def _run(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    mixed: Tensor = _ops().memory_efficient_attention(query, key, value, scale=scale)
    return mixed


@cache
def _ops() -> Any:
    return importlib.import_module("xformers.ops")


def _why_not(case: Case) -> list[str]:
    return [] if _version() else ["xformers is not installed"]


@cache
def _version() -> str | None:
    return installed_version("xformers")


XFORMERS = Backend(
    name="xformers",
    run=_run,
    capability=(6, 0),
    dtypes=(*HALVES, torch.float32),
    largest=65536,
    tiles=(64, 96, 128, 192, 256),
    is_deterministic=False,
    why_not=_why_not,
)
