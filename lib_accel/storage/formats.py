"""How a matrix is kept in eight bits a number: a code for each, and one scale a row.

A row is what makes one output channel of a linear layer. The formats are those of torchao 0.18's weight-only
configurations with PerRow: the same codes in float8, and in int8 but for a scale of 1/127 of the largest
number instead of 2/255. Its tensors are not used. The one for int8 multiplies with the codes and scales the
result, which in float16 is infinite where the codes' product is beyond 65504; both lack operations that our
blocks need; and torchao needs a newer torch than ours may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from lib_accel.errors import AccelError

_LEAST_SCALE = torch.finfo(torch.float32).tiny  # a row of zeros is divided by it


class StorageError(AccelError):
    """Weights cannot be stored, or others changed stored ones. The message says which and what to do."""


class Format(NamedTuple):
    """What the codes are."""

    dtype: torch.dtype
    largest: float  # the code of the largest number of each row


FORMATS: Mapping[str, Format] = MappingProxyType(
    {"int8": Format(torch.int8, 127.0), "float8": Format(torch.float8_e4m3fn, 448.0)}
)


def encode(full: Tensor, kind: Format) -> tuple[Tensor, Tensor]:
    """The codes (out, in) of a matrix and its scales (out, 1) in float32.

    A row with a number that is not finite comes back as NaN, all of it.
    """
    wide = full.detach().to(torch.float32)
    scale = (wide.abs().amax(1, keepdim=True) / kind.largest).clamp_(min=_LEAST_SCALE)
    codes = wide / scale
    if not kind.dtype.is_floating_point:
        codes.round_()
    return codes.clamp_(-kind.largest, kind.largest).to(kind.dtype), scale


def decode(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix of these codes, computed in float32 and rounded once."""
    return codes.to(torch.float32).mul_(scale).to(dtype)
