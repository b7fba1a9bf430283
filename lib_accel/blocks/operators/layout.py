"""In which memory format residual blocks run faster: channels first, or last.

A question more than an operator: no block calls it, but it is timed as one. Weights have one format in all
calls, so what it says of the blocks of a model is added up; see formats.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator, Tuned
from lib_accel.blocks.operators.prefer import Prefer
from lib_accel.blocks.res import ResSpec, ResWeights, res_block
from lib_accel.blocks.rules import Rules

CHANNELS_FIRST, CHANNELS_LAST = "channels first", "channels last"

CONV_IN = 2 + ResWeights._fields.index("conv_in")  # the position of that weight among the arguments

_WEIGHTS = len(ResWeights._fields)
_HALF = (torch.float16, torch.bfloat16)  # the dtypes that tensor cores convolve channels last


def arguments(
    x: Tensor, emb: Tensor | None, weights: Sequence[Any], spec: ResSpec, rules: Rules
) -> Arguments:
    """The operator's, of those of a residual block."""
    return (x, emb, *ResWeights(*weights), spec, rules.matmul, rules.norm)


def calls(*args: Any) -> list[tuple[Operator, Arguments]]:
    """The operators that the block calls when it lies channels last, and with what. Runs it once so."""
    noting = _Noting()
    _run(tuple(map(_turned, args)), noting)
    return noting.calls


def key_of(args: Arguments) -> Hashable:
    """What of the arguments tells calls of one block from each other."""
    x, emb, *_, matmul, norm = args
    given = None if emb is None else (emb.shape, emb.dtype)
    return x.shape, x.dtype, x.device, given, matmul, norm


class _Noting:
    """operator.Tuned that notes all calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Operator, Arguments]] = []

    def implementation(self, operator: Operator, args: Arguments) -> None:
        self.calls.append((operator, args))

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        raise error


def _run(args: Arguments, tuned: Tuned | None) -> Tensor:
    x, emb, *weights = args[: 2 + _WEIGHTS]
    spec, matmul, norm = args[2 + _WEIGHTS :]
    return res_block(x, emb, ResWeights(*weights), spec, Rules(matmul, norm, tuned))


def _plain(*args: Any) -> Tensor:
    return _run(args, None)


def _others(*args: Any) -> Sequence[Implementation]:
    """By our kernels in either format, on a GPU in half precision, of images that lie channels first.

    torch's own norms copy an image that has its channels last, so that plain torch is no rival there.
    """
    x, matmul = args[0], args[3 + _WEIGHTS]
    if not x.is_cuda or not x.is_contiguous() or (matmul or x.dtype) not in _HALF:
        return ()
    first = Implementation(CHANNELS_FIRST, lambda *args: _run(args, Prefer("Triton")))
    return first, Implementation(CHANNELS_LAST, _channels_last())


def _channels_last() -> Any:
    """The block on copies in the other format, which are made once: in a model they lie so."""
    copies: list[Arguments] = []

    def run(*args: Any) -> Tensor:
        if not copies:
            copies.append(tuple(map(_turned, args)))
        return _run(copies[0], Prefer("Triton"))

    return run


def _turned(value: Any) -> Any:
    is_image = isinstance(value, Tensor) and value.dim() == 4
    return value.contiguous(memory_format=torch.channels_last) if is_image else value


RESIDUAL_LAYOUT = Operator(
    "residual block, memory format", _plain, _others, ((0, 2, 3), (0,), *((),) * (_WEIGHTS + 3))
)
