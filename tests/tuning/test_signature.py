"""Calls that are computed alike share a name, others do not, and an example is like its call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lib_accel.blocks.operators.operator import Operator
from lib_accel.tuning import signature as signature_module
from lib_accel.tuning.signature import Call, call_of, device_of, example, signature, size_class
from lib_accel.tuning.table import OPERATORS

OPERATOR = Operator("each", torch.mul, lambda *args: (), ((0, 2, 3), (), (), ()))


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 4, 8, 8))


def args(
    x: Tensor | None = None, weight: Tensor | None = None, bias: object = None, eps: float = 1e-5
) -> tuple:
    return (image() if x is None else x, torch.randn(4) if weight is None else weight, bias, eps)


def class_of(*given: object) -> tuple[str, ...]:
    return size_class(OPERATOR, call_of(OPERATOR, given))


class Own(Tensor):
    """A tensor of somebody else."""


# What is looked up


def test_equal_calls_have_equal_signatures() -> None:
    first, second = signature("each", args()), signature("each", args())
    assert (first, hash(first)) == (second, hash(second))


OTHERS: dict[str, Callable[[], tuple]] = {
    "size": lambda: args(image(2, 4, 8, 9)),
    "batch": lambda: args(image(1, 4, 8, 8)),
    "dtype": lambda: args(image().half()),
    "layout": lambda: args(image().contiguous(memory_format=torch.channels_last)),
    "strides": lambda: args(image(2, 4, 16, 8)[:, :, ::2]),
    "dtype of a weight": lambda: args(weight=torch.randn(4).half()),
    "a tensor for None": lambda: args(bias=torch.randn(4)),
    "value": lambda: args(eps=1e-6),
    "class": lambda: args(weight=torch.randn(4).as_subclass(Own)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_call_that_differs_has_another_signature(other: str) -> None:
    assert signature("each", OTHERS[other]()) != signature("each", args())


def test_another_operator_has_another_signature() -> None:
    assert signature("other", args()) != signature("each", args())


def test_a_parameter_is_a_tensor() -> None:
    assert signature("each", args(weight=nn.Parameter(torch.randn(4)))) == signature("each", args())


def test_a_signature_holds_no_tensor() -> None:
    given = args(bias=torch.randn(4), weight=torch.randn(4).as_subclass(Own))
    assert not any(isinstance(each, Tensor) for each in signature("each", given))  # type: ignore[attr-defined]


class Counted(Tensor):
    """Counts what it is asked."""

    asked = 0

    @classmethod
    def __torch_function__(
        cls, func: object, types: object, args: tuple = (), kwargs: object = None
    ) -> object:
        Counted.asked += 1
        return super().__torch_function__(func, types, args, kwargs)


def test_a_tensor_is_asked_four_things_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_module, "Parameter", Counted)  # one of the classes that are known
    strided = torch.randn(4, 6).t().as_subclass(Counted)
    Counted.asked = 0
    signature("each", (strided,))
    assert Counted.asked == 4


# What is measured once


@pytest.mark.parametrize(
    "x",
    [image(2, 4, 8, 11), image(4, 4, 8, 4), image(3, 4, 7, 5), image(2, 4, 16, 8)[:, :, :8].contiguous()],
    ids=["wide", "batch", "smaller", "cut"],
)
def test_calls_of_like_size_share_a_class(x: Tensor) -> None:
    assert class_of(*args(x)) == class_of(*args())


CLASSES: dict[str, Callable[[], tuple]] = {
    "twice as large": lambda: args(image(2, 4, 16, 8)),
    "half as large": lambda: args(image(2, 4, 8, 4)),
    "one image": lambda: args(image(1, 4, 16, 8)),
    "channels": lambda: args(image(2, 5, 8, 8)),
    "dtype": OTHERS["dtype"],
    "layout": OTHERS["layout"],
    "strides": OTHERS["strides"],
    "rank": lambda: args(image(2, 4, 8, 8, 1)),
    "size of a weight": lambda: args(weight=torch.randn(5)),
    "a tensor for None": OTHERS["a tensor for None"],
    "value": OTHERS["value"],
}


@pytest.mark.parametrize("other", CLASSES)
def test_calls_that_may_be_computed_otherwise_do_not(other: str) -> None:
    assert class_of(*CLASSES[other]()) != class_of(*args())


def test_a_dimension_of_size_one_lies_anyhow() -> None:
    odd = torch.empty_strided((1, 4, 8, 8), (7, 64, 8, 1)).fill_(1.0)
    assert class_of(*args(odd)) == class_of(*args(image(1, 4, 8, 8)))


def test_strides_count_by_their_kind() -> None:
    first, second = (args(image(2, 4, 8, width)[..., :8]) for width in (10, 12))
    assert class_of(*first) == class_of(*second) != class_of(*args())


def test_an_expanded_tensor_is_of_another_kind() -> None:
    expanded = image(2, 4, 1, 8).expand(2, 4, 8, 8)
    assert class_of(*args(expanded)) != class_of(*args(image(2, 4, 10, 8)[:, :, :8]))


def test_a_class_prints_itself_without_addresses() -> None:
    assert class_of(*args(weight=torch.randn(4).half())) == (
        "4d 4 torch.float32 contiguous cpu nx7",
        "1d 4 torch.float16 contiguous cpu",
        "None",
        "1e-05",
    )


# Examples

TENSORS = {
    "contiguous": image(),
    "channels-last": image().contiguous(memory_format=torch.channels_last),
    "cut": image(2, 4, 8, 12)[..., :8],
    "expanded": image(2, 4, 1, 8).expand(2, 4, 8, 8),
    "half": image().half(),
    "a number": torch.tensor(1.0),
    "nothing": torch.empty(0, 4),
    "whole numbers": torch.arange(4),
}


@pytest.mark.parametrize("name", TENSORS)
def test_an_example_is_like_the_call(name: str) -> None:
    given = args(TENSORS[name])
    like = example(call_of(OPERATOR, given))
    assert signature("each", like) == signature("each", given)
    assert like[0].stride() == given[0].stride()


def test_an_example_has_numbers_that_are_no_ones_and_differ() -> None:
    x, weight, *_ = example(call_of(OPERATOR, args()))
    assert 0.3 < float(x.std()) < 0.7
    assert float(x.flatten()[0]) != float(weight[0])


def test_an_example_is_the_same_each_time() -> None:
    call = call_of(OPERATOR, args())
    assert torch.equal(example(call)[0], example(call)[0])


def test_an_example_leaves_the_hosts_random_numbers_alone() -> None:
    call, before = call_of(OPERATOR, args()), torch.get_rng_state()
    example(call)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_values_of_a_call_that_are_no_tensors_are_kept() -> None:
    assert example(call_of(OPERATOR, args()))[2:] == (None, 1e-5)


def test_a_call_says_its_sizes() -> None:
    assert call_of(OPERATOR, args()).size == "2x4x8x8, 4"


def test_a_tensor_takes_the_memory_between_its_first_and_last_element() -> None:
    call = call_of(OPERATOR, args(image(2, 4, 8, 12).half()[..., :8]))
    assert call.forms[0].size_bytes == 2 * (2 * 4 * 8 * 12 - 4)


def test_a_call_is_where_its_first_tensor_is() -> None:
    assert device_of((None, 3, torch.empty(2, device="meta"), torch.empty(2))).type == "meta"


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_says_of_each_argument_what_varies(name: str) -> None:
    operator = OPERATORS[name]
    named = operator.plain.__code__  # type: ignore[attr-defined]
    has_all = named.co_flags & 0x04  # *args
    assert has_all or named.co_argcount == len(operator.varies)


def test_a_call_holds_no_tensor() -> None:
    call = call_of(OPERATOR, args())
    assert isinstance(call, Call)
    assert not any(isinstance(each, Tensor) for each in call.args)
