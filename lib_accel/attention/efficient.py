"""torch's memory-efficient attention, since 2.1 with a scale: heads of any size, float32, older GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib_accel.attention.backend import HALVES, Backend
from lib_accel.attention.case import Case

_ANY_SIZE = 65536  # as its kernel for the largest heads is declared


def _run(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    mixed: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        *heads_first, attn_bias=None, compute_log_sumexp=False, scale=scale
    )[0]
    return mixed.transpose(1, 2)


def _why_not(case: Case) -> list[str]:
    cuda: Any = torch.backends.cuda
    return [] if cuda.mem_efficient_sdp_enabled() else ["torch's switch mem_efficient_sdp is off"]


EFFICIENT = Backend(
    name="efficient",
    run=_run,
    capability=(5, 0),
    dtypes=(*HALVES, torch.float32),
    largest=_ANY_SIZE,
    tiles=(64, 128),  # larger heads are computed in parts of 128
    is_deterministic=True,
    why_not=_why_not,
)
