"""torch's FlashAttention: version 1 in torch 2.1, version 2 since 2.2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib_accel.attention.backend import HALVES, Backend
from lib_accel.attention.case import Case
from lib_accel.requirements import is_older

_VERSION_2 = "2.2"
_LARGEST_OF_VERSION_1 = 128


def _run(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention.default(*heads_first, scale=scale)[0]
    return mixed.transpose(1, 2)


def _why_not(case: Case) -> list[str]:
    cuda: Any = torch.backends.cuda
    reasons = []
    if not cuda.flash_sdp_enabled():
        reasons.append("torch's switch flash_sdp is off")
    if case.size > _LARGEST_OF_VERSION_1 and is_older(torch.__version__, _VERSION_2):
        reasons.append(f"heads of {case.size}, needs {_LARGEST_OF_VERSION_1} or less before {_VERSION_2}")
    return reasons


FLASH = Backend(
    name="flash",
    run=_run,
    capability=(8, 0),
    dtypes=HALVES,
    largest=256,
    tiles=(32, 64, 96, 128, 192, 256),
    is_deterministic=True,
    why_not=_why_not,
)
