"""Where kernels run in a test, a GPU or Triton's interpreter, and how near their results must be."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from lib_accel.kernels.tolerance import Tolerance

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICE = "cpu" if IS_INTERPRETED else "cuda"

# Of each file that launches kernels: test_interpreter.py runs them without a GPU.
MARKS = [] if IS_INTERPRETED else [pytest.mark.gpu]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normally distributed values, the same at each call."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_near(
    ours: Tensor,
    exact: Tensor,
    tolerances: Mapping[torch.dtype, Tolerance],
    coarsest: torch.dtype | None = None,
) -> None:
    """`ours` is as near to the float64 result as the kernel's own table promises.

    coarsest: the dtype that counts, if another than that of `ours` is the coarsest on the way.
    """
    dtype = coarsest or ours.dtype
    relative, absolute = tolerances[dtype]
    if IS_INTERPRETED and dtype is torch.bfloat16:  # the interpreter cuts off where a GPU rounds
        relative, absolute = 2 * relative, 2 * absolute
    assert exact.dtype is torch.float64
    assert ours.shape == exact.shape
    excess = (ours.double() - exact).abs() - (absolute + relative * exact.abs())
    assert not excess.isnan().any(), "NaN in the result"
    assert excess.max() <= 0, f"{excess.max():.3g} above the tolerance"
