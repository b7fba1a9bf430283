"""Arguments and results in parts: what is one recording's call, what is another's, what is nobody's."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lib_accel.graphs.trees import NotPlainError, Whereabouts, flattened, like


class Pair(NamedTuple):
    first: Any
    second: Any = None


class Output(OrderedDict):
    """As the results of transformers and diffusers: a mapping that is made by name and read by attribute."""

    def __init__(self, **members: Any) -> None:
        super().__init__(members)
        self.__dict__.update(members)


def other(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, 7.0)


def key(value: Any) -> Any:
    return flattened(value).key


X, Y = torch.ones(2, 3), torch.zeros(4, dtype=torch.int64)

TREES: dict[str, Any] = {
    "a tensor": X,
    "a parameter": nn.Parameter(X),
    "constants": (None, True, 3, 0.5, "text", torch.float16, torch.device("cpu")),
    "nested": [X, (Y, {"scale": 0.5, "more": [None, X]})],
    "a named tuple": Pair(X, Pair(Y)),
    "a size": torch.Size([2, 3]),
    "an empty tuple": (),
    "a result of a model": Output(sample=X, kept=(Y,)),
}


@pytest.mark.parametrize("name", TREES)
def test_what_is_put_together_again_is_what_was_taken_apart(name: str) -> None:
    tree = flattened(TREES[name])
    again = tree.rebuilt(tree.tensors)
    assert type(again) is type(TREES[name])
    assert flattened(again).form == tree.form
    assert [id(each) for each in flattened(again).tensors] == [id(each) for each in tree.tensors]


def test_tensors_are_replaced_in_their_order() -> None:
    tree = flattened({"a": [X, 1], "b": Pair(Y, X)})
    first, second, third = (torch.full((1,), float(number)) for number in range(3))
    again = tree.rebuilt([first, second, third])
    assert again["a"] == [first, 1]
    assert again["b"].first is second
    assert again["b"].second is third


def test_a_result_of_a_model_is_made_by_name() -> None:
    again = flattened(Output(sample=X, other=None)).rebuilt([Y])
    assert again.sample is Y
    assert again["other"] is None


def test_too_few_tensors_are_not_taken_for_all() -> None:
    with pytest.raises(StopIteration):
        flattened([X, X]).rebuilt([X])


def test_values_of_tensors_do_not_count() -> None:
    assert key([X, {"y": Y}]) == key([other(X), {"y": other(Y)}])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 1.0),
        (1, True),
        (0, False),
        (0.0, False),
        (1, 2),
        ("a", "b"),
        (None, False),
        (torch.float16, torch.bfloat16),
        ((X,), [X]),
        ((X, None), (X,)),
        (Pair(X, 1), (X, 1)),
        ({"a": X}, {"b": X}),
        ({"a": X, "b": 1}, {"a": 1, "b": X}),
        ({"a": X}, Output(a=X)),
        (X, None),
        (X, X[:1]),
        (X, X.double()),
        (X, X[0]),
        (torch.empty(2, 3, 4, 4), torch.empty(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        (torch.empty(4, 4), torch.empty(4, 8)[:, ::2]),
    ],
)
def test_what_differs_in_anything_but_values_is_another_call(first: Any, second: Any) -> None:
    assert key(["x", first]) != key(["x", second])
    assert key(["x", first]) == key(["x", first])


def test_a_key_can_be_looked_up() -> None:
    assert {key(TREES[name]): name for name in TREES}[key(TREES["nested"])] == "nested"


@dataclass
class Anything:
    x: Any


class Special(Tensor):
    """A class of tensors that may do anything when it is used."""


REFUSED: dict[str, Any] = {
    "an object": Anything(X),
    "a function": len,
    "a set": {1},
    "a mapping by numbers": {1: X},
    "a subclass of tensors": X.as_subclass(Special),
    "a complex number": 1j,
    "a slice": slice(1),
    "bytes": b"x",
    "a subclass of a number": type("Number", (float,), {})(1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_recording_can_be_told_by_is_refused(name: str) -> None:
    with pytest.raises(NotPlainError, match=f"called with a {type(REFUSED[name]).__name__}"):
        flattened((X, [REFUSED[name]]))


@pytest.mark.parametrize(
    "given",
    [
        torch.randn(2, 3, 4, 5),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, 4).half(),
        torch.arange(5),
        torch.tensor(3.0),
        torch.empty(0, 4),
    ],
    ids=["first", "last", "half", "integers", "a number", "nothing"],
)
def test_new_memory_is_laid_out_alike(given: Tensor) -> None:
    memory = like(given)
    assert (memory.shape, memory.dtype, memory.stride()) == (given.shape, given.dtype, given.stride())
    assert not given.nbytes or memory.data_ptr() != given.data_ptr()


@pytest.mark.parametrize(
    "given", [torch.randn(3, 8)[:, ::2], torch.randn(1, 4).expand(3, 4), torch.randn(3, 4).T]
)
def test_strided_values_get_memory_one_after_the_other(given: Tensor) -> None:
    memory = like(given)
    assert memory.is_contiguous()
    memory.copy_(given)  # as an expanded one could not be written
    assert torch.equal(memory, given)


def test_addresses_tell_a_weight_that_moved() -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    before = Whereabouts([weight, None])
    weight.data.mul_(2)
    assert before.are_of([weight, None])
    aliases = [weight.detach(), None]
    assert before.are_of(aliases)
    assert not before.are_of([weight.detach().T, None])
    assert not before.are_of([weight.detach().view(torch.int32), None])
    assert not before.are_of([weight, weight])
    weight.data = weight.data.clone()
    assert not before.are_of([weight, None])
