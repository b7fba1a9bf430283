"""How far a kernel's result may be from the exact one, by the dtype that it is stored in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    """`|ours - exact| <= absolute + relative * |exact|`, for results of about unit size."""

    relative: float
    absolute: float


# The largest relative error that storing a value of about unit size in a dtype makes.
_ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


def rounded(times: int, *, slope: float = 0.0, arithmetic: float = 1e-5) -> Mapping[torch.dtype, Tolerance]:
    """Tolerances where a result is rounded to its dtype that many times, after arithmetic in float32.

    slope: how much further an error of the first rounding goes than the result's size says, in roundings.
    arithmetic: some dozen float32 roundings of values below about ten, which a difference may leave larger
    than the result; and float16 below 2**-14, where neighbours are 2**-24 apart.
    """
    return {dtype: Tolerance(times * unit, slope * unit + arithmetic) for dtype, unit in _ROUNDING.items()}
