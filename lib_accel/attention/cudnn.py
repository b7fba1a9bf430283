"""cuDNN's attention through torch: since 2.5, used here since 2.6.

It plans each size of picture anew, so the first call of a size takes longer than those that follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib_accel.attention.backend import HALVES, Backend
from lib_accel.attention.case import Case
from lib_accel.requirements import is_older

# That of 2.5 gave NaN in diffusers (https://github.com/huggingface/diffusers/issues/9768).
_OLDEST = "2.6"
_MOST = 65535  # of the batch, and of the heads


def _run(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    mixed: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention.default(
        *heads_first, attn_bias=None, compute_log_sumexp=False, scale=scale
    )[0]
    return mixed.transpose(1, 2)


def _why_not(case: Case) -> list[str]:
    if is_older(torch.__version__, _OLDEST):
        return [f"torch {torch.__version__} is older than {_OLDEST}"]
    cuda: Any = torch.backends.cuda
    reasons = []
    if not cuda.cudnn_sdp_enabled():
        reasons.append("torch's switch cudnn_sdp is off")
    if torch.backends.cudnn.deterministic:
        reasons.append("cuDNN is to be deterministic, and its attention is not")
    if case.source == 1:
        reasons.append("one key, needs two or more")
    if max(case.batch, case.heads) > _MOST:
        reasons.append(f"a batch of {case.batch} with {case.heads} heads, needs {_MOST} or less of each")
    return reasons


CUDNN = Backend(
    name="cuDNN",
    run=_run,
    capability=(8, 0),
    dtypes=HALVES,
    largest=128,
    tiles=(64, 128),
    is_deterministic=False,
    why_not=_why_not,
)
