"""Stand-ins for the operators of blocks on a CPU, where each has a rival that computes the same.

They are put into our server; the process that holds contests has them from tuned_worker.py, where each rival
wins. What is asked for, compared, kept and put into effect, and when, is as on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel import measured
from lib_accel.blocks import ops
from lib_accel.blocks.convolution import convolve
from lib_accel.blocks.operators import convolution_norm, layout, projections
from lib_accel.blocks.operators.operator import Arguments, Implementation, Operator
from lib_accel.blocks.operators.table import OPERATORS as REAL
from lib_accel.formats import Formats
from lib_accel.tuning.tuner import Tuner

RIVAL, TORCH = "stand-in", "torch"
DEVICE = "cpu"
TABLE = "tests.host.tuned_worker:OPERATORS"  # of the process that holds contests
FILE = "stand-in.json"  # of verdicts: those of a CPU may not come into effect in a server without stand-ins

Run = Callable[..., Tensor]

ran: Counter[str] = Counter()  # calls of this process, by RIVAL or TORCH and the operator's name


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, *_: Any) -> Tensor:
    query, key, value = (_heads(each, heads) for each in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def _gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
    values, gates = weight.chunk(2)
    of_values, of_gates = (None, None) if bias is None else bias.chunk(2)
    return F.linear(x, values, of_values) * F.gelu(F.linear(x, gates, of_gates))


def _linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, *_: Any) -> Tensor:
    return F.linear(x, weight) + (residual if bias is None else residual + bias)


def _convolution_add(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, spec: Any, *_: Any
) -> Tensor:
    added = residual if bias is None else residual + bias[:, None, None]
    return convolve(x, weight, None, spec) + added


def _convolution_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    norm: Tensor | None,
    norm_bias: Tensor | None,
    spec: Any,
    use: Any,
    *_: Any,
) -> Tensor:
    image = convolve(x, weight, None, spec)
    for added in (bias, shift):
        image = image if added is None else image + added[..., None, None]
    return _group_norm(image, norm, norm_bias, use)


def _group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, use: Any) -> Tensor:
    groups = x.unflatten(1, (use.norm.groups, -1))
    variance, mean = torch.var_mean(groups, (2, 3, 4), correction=0, keepdim=True)
    normed = ((groups - mean) * (variance + use.norm.eps).rsqrt()).flatten(1, 2)
    normed = normed if weight is None else normed * weight[:, None, None]
    normed = normed if bias is None else normed + bias[:, None, None]
    return normed * normed.sigmoid() if use.silu else normed


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, use: Any) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    normed = (x - mean) * (variance + use.eps).rsqrt()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


_RIVALS: dict[str, Run] = {
    "attention": _attention,
    "convolution, residual": _convolution_add,
    "convolution, norm": _convolution_norm,
    "gated linear": _gated_linear,
    "group norm": _group_norm,
    "layer norm": _layer_norm,
    "linear, residual": _linear_add,
}


def _counted(who: str, name: str, run: Run) -> Run:
    def counted(*args: Any) -> Tensor:
        ran[f"{who} {name}"] += 1
        return run(*args)

    return counted


def _with_rival(operator: Operator) -> Operator:
    name = operator.name
    rivals = (Implementation(RIVAL, _counted(RIVAL, name, _RIVALS[name])),)

    def others(x: Tensor, *_: Any) -> Sequence[Implementation]:
        return rivals if x.device.type == DEVICE and x.dtype is torch.float32 else ()

    return operator._replace(plain=_counted(TORCH, name, operator.plain), others=others)


def _in_both_formats(operator: Operator) -> Operator:
    """What a GPU has in half precision, on a CPU in single precision."""

    def others(x: Tensor, *_: Any) -> Sequence[Implementation]:
        if x.device.type != DEVICE or not x.is_contiguous():
            return ()
        last = cache(lambda *args: tuple(map(layout._turned, args)))  # once: in a model they lie so
        return (
            Implementation(layout.CHANNELS_FIRST, lambda *args: layout._run(args, _Rivals())),
            Implementation(layout.CHANNELS_LAST, lambda *args: layout._run(last(*args), _Rivals())),
        )

    return operator._replace(others=others)


def _packed(operator: Operator) -> Operator:
    """What a GPU has, on a CPU."""

    def others(x: Tensor, *_: Any) -> Sequence[Implementation]:
        return (Implementation(projections.PACKED, projections.packed()),) if x.device.type == DEVICE else ()

    return operator._replace(others=others)


class _Rivals:
    """operator.Tuned that takes each rival: torch's own norm of large images so laid rounds too coarsely."""

    def implementation(self, operator: Operator, args: Arguments) -> Implementation:
        """The rival."""
        return Implementation(RIVAL, _RIVALS[operator.name])

    def note_failure(self, operator: Operator, implementation: Implementation, error: Exception) -> None:
        """Raises the error."""
        raise error


OPERATORS = {name: _with_rival(operator) for name, operator in REAL.items() if name in _RIVALS}
OPERATORS[layout.RESIDUAL_LAYOUT.name] = _in_both_formats(layout.RESIDUAL_LAYOUT)
OPERATORS[projections.PROJECTIONS.name] = _packed(projections.PROJECTIONS)


def install(engine: Any) -> None:
    """Has an engine choose among these; harmless to repeat. Forgets what an earlier server left on disk."""
    for module in (ops, convolution_norm, measured):
        for name, value in list(vars(module).items()):
            if isinstance(value, Operator):
                setattr(module, name, OPERATORS[value.name])
    for each in engine._measured._formats:
        each.way = each.way._replace(question=OPERATORS[each.way.question.name])
    tuner = engine._measured._tuner
    tuner._devices, tuner._table = (DEVICE,), TABLE
    verdicts = tuner._verdicts
    if verdicts._file.name != FILE:
        verdicts._file, verdicts._kept = verdicts._file.with_name(FILE), None
        verdicts._file.unlink(missing_ok=True)


def begin_anew(engine: Any) -> None:
    """As after a restart: weights lie as they were loaded, and all that is known is what is on disk."""
    found = engine._measured
    for each in found._formats:
        each.undo()
    before, verdicts = found._tuner, found._tuner._verdicts
    verdicts._kept = None
    verdicts._changed.clear()
    found._tuner = Tuner(
        verdicts, before._activity, before._is_busy, before._launches, table=TABLE, devices=(DEVICE,)
    )
    found._images, found._projections = (Formats(found, verdicts, each.way) for each in found._formats)
