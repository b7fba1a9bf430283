"""What two calls of an operator have in common: all of it for a look-up, or what decides who is faster."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from lib_accel.blocks.operators.operator import Arguments, Operator

CONTIGUOUS = "contiguous"
CHANNELS_LAST = "channels-last"


def signature(name: str, args: Arguments) -> Hashable:
    """What is looked up at every call of an operator: some microseconds of it count. It holds no tensor.

    Where a tensor is contiguous its strides say nothing more, and its device is that of the call.
    """
    parts: list[Any] = [name]
    add = parts.append
    for each in args:
        kind = type(each)
        if kind is Tensor or kind is Parameter:
            add(each.shape)
            add(each.is_contiguous() or each.stride())
            add(each.dtype)
        elif isinstance(each, Tensor):
            parts += (kind, each.shape, each.stride(), each.dtype)
        else:
            add(each)
    return tuple(parts)


class Form(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @property
    def size_bytes(self) -> int:
        """What its memory takes from its first element to its last."""
        return _extent(self.shape, self.stride) * self.dtype.itemsize


class Call(NamedTuple):
    """The arguments of an operator without the values of tensors: Form, None or a value for each."""

    operator: str
    args: tuple[Any, ...]

    @property
    def forms(self) -> list[Form]:
        """Those of its tensors, of which there is at least one: it says where the call is."""
        return [each for each in self.args if isinstance(each, Form)]

    @property
    def size(self) -> str:
        """The shapes of its tensors in words."""
        return ", ".join("x".join(map(str, form.shape)) or "1" for form in self.forms)


def call_of(operator: Operator, args: Arguments) -> Call:
    """The call of an operator with these arguments."""
    return Call(operator.name, tuple(_form(each) if isinstance(each, Tensor) else each for each in args))


def device_of(args: Arguments) -> torch.device:
    """That of the first tensor."""
    return next(each.device for each in args if isinstance(each, Tensor))


def size_class(operator: Operator, call: Call) -> tuple[str, ...]:
    """What calls have in common that are equally well computed by the same implementation, most likely.

    Of each tensor the product of its varying dimensions counts by the nearest power of two, with whether the
    batch is one or more; all else is exact but strides, of which the kind counts.
    """
    return tuple(
        _class_of(each, varies) if isinstance(each, Form) else repr(each)
        for each, varies in zip(call.args, operator.varies, strict=True)
    )


def example(call: Call) -> Arguments:
    """Arguments like those of a call, in new memory; by random numbers of their own."""
    source = torch.Generator(call.forms[0].device).manual_seed(0)
    return tuple(_drawn(each, source) if isinstance(each, Form) else each for each in call.args)


def _form(tensor: Tensor) -> Form:
    return Form(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, str(tensor.device))


def _class_of(form: Form, varies: Sequence[int]) -> str:
    fixed = [size for number, size in enumerate(form.shape) if number not in varies]
    place = torch.device(form.device).type
    exact = f"{len(form.shape)}d {'x'.join(map(str, fixed))} {form.dtype} {layout(form)} {place}"
    if not varies:
        return exact
    batch = ("1" if form.shape[0] == 1 else "n") if 0 in varies else ""
    product = math.prod(size for number, size in enumerate(form.shape) if number in varies)
    # By the nearest power of two: those are the usual sizes, and what is near them costs alike.
    return f"{exact} {batch}x{round(math.log2(max(product, 1)))}"


def layout(form: Form) -> str:
    """How a tensor lies in memory; of other strides the order of dimensions, and which are not dense."""
    rank = len(form.shape)
    if _lies(form, range(rank)[::-1]):
        return CONTIGUOUS
    if rank == 4 and _lies(form, (1, 3, 2, 0)):
        return CHANNELS_LAST
    order = sorted(range(rank), key=lambda number: (form.stride[number], -number))
    dense = _dense(form.shape, order)
    kinds = "".join(
        "0" if own == 0 else "=" if own == full else ">" for own, full in zip(form.stride, dense, strict=True)
    )
    return f"strides {''.join(map(str, order))} {kinds}"


def _lies(form: Form, order: Sequence[int]) -> bool:
    """Whether dimensions lie densely in that order, from the inside out; those of size one lie anyhow."""
    dense = _dense(form.shape, order)
    return all(form.shape[n] == 1 or form.stride[n] == dense[n] for n in order)


def _dense(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    strides, step = [0] * len(shape), 1
    for number in order:
        strides[number] = step
        step *= shape[number]
    return tuple(strides)


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _drawn(form: Form, source: torch.Generator) -> Tensor:
    """Numbers of an activation's size; of whole numbers zeros, which are a place in any table."""
    length = _extent(form.shape, form.stride)
    if form.dtype.is_floating_point:
        values = torch.randn(length, generator=source, device=form.device).mul_(0.5).to(form.dtype)
    else:
        values = torch.zeros(length, dtype=form.dtype, device=form.device)
    return values.as_strided(form.shape, form.stride)
