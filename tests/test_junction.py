"""Several receivers share one replaced method, each for its own modules, and leave in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import pytest

from lib_accel import patching
from lib_accel.patching import Junction, is_ours, junction

Method = Callable[..., Any]


class Layer:
    """What is patched, in a class of its own for each test."""

    def forward(self, x: str, *, twice: bool = False) -> str:
        """Its own doing."""
        return f"own({x}{x if twice else ''})"


@pytest.fixture
def owner() -> type[Layer]:
    return type("Own", (Layer,), {"forward": lambda self, x, **kwargs: Layer.forward(self, x, **kwargs)})


class Taker:
    """A receiver that owns what it was given, and marks what it makes."""

    def __init__(self, mark: str, *owned: Any) -> None:
        self.mark, self.owned = mark, owned
        self.times_asked = 0

    def owns(self, module: Any) -> bool:
        self.times_asked += 1
        return module in self.owned

    def receive(self, module: Any, original: Method, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        return f"{self.mark}({original(module, *args, **kwargs)})"


def wrap(owner: type[Layer]) -> Method:
    """Somebody else wraps whatever is there; returns what was."""
    below = owner.forward

    def forward(module: Any, x: str) -> str:
        return f"theirs({below(module, x)})"

    owner.forward = forward  # type: ignore[method-assign, assignment]
    return below


def test_making_a_junction_changes_nothing(owner: type[Layer]) -> None:
    before = owner.__dict__["forward"]
    assert Junction(owner, "forward").original is before
    assert owner.__dict__["forward"] is before


def test_calls_go_to_the_receiver_that_owns_the_module(owner: type[Layer]) -> None:
    one, other, nobodys = owner(), owner(), owner()
    place = Junction(owner, "forward")
    for taker in (Taker("A", one), Taker("B", other)):
        place.join(taker)
    assert [each.forward("x") for each in (one, other, nobodys)] == ["A(own(x))", "B(own(x))", "own(x)"]


def test_arguments_reach_the_original_as_they_were_given(owner: type[Layer]) -> None:
    one = owner()
    Junction(owner, "forward").join(Taker("A", one))
    assert one.forward(x="x", twice=True) == "A(own(xx))"


def test_the_first_of_two_owners_takes_the_call_until_it_leaves(owner: type[Layer]) -> None:
    one = owner()
    place, first, second = Junction(owner, "forward"), Taker("A", one), Taker("B", one)
    place.join(first)
    place.join(second)
    assert (place.taker(one), one.forward("x")) == (first, "A(own(x))")
    place.leave(first)
    assert (place.taker(one), one.forward("x")) == (second, "B(own(x))")


def test_nobody_takes_what_nobody_owns(owner: type[Layer]) -> None:
    place = Junction(owner, "forward")
    place.join(Taker("A"))
    assert place.taker(owner()) is None


@pytest.mark.parametrize("leaving", list(permutations(range(3))))
def test_class_is_as_before_when_the_last_has_left(owner: type[Layer], leaving: tuple[int, ...]) -> None:
    before = owner.__dict__["forward"]
    place, takers = Junction(owner, "forward"), [Taker("A"), Taker("B"), Taker("C")]
    for taker in takers:
        place.join(taker)
    for number in leaving:
        assert owner.__dict__["forward"] is not before
        place.leave(takers[number])
    assert owner.__dict__["forward"] is before


def test_an_inherited_method_is_inherited_again() -> None:
    heir = type("Heir", (Layer,), {})
    place, taker = Junction(heir, "forward"), Taker("A")
    place.join(taker)
    place.leave(taker)
    assert "forward" not in heir.__dict__


def test_who_joins_twice_leaves_at_once(owner: type[Layer]) -> None:
    before = owner.__dict__["forward"]
    one = owner()
    place, taker = Junction(owner, "forward"), Taker("A", one)
    place.join(taker)
    place.join(taker)
    assert one.forward("x") == "A(own(x))"
    place.leave(taker)
    place.leave(taker)
    assert owner.__dict__["forward"] is before


def test_who_joins_twice_is_asked_once_a_call(owner: type[Layer]) -> None:
    place, taker = Junction(owner, "forward"), Taker("A")
    place.join(taker)
    place.join(taker)
    owner().forward("x")
    assert taker.times_asked == 1


def test_leaving_of_one_that_never_joined_changes_nothing(owner: type[Layer]) -> None:
    one = owner()
    place = Junction(owner, "forward")
    place.join(Taker("A", one))
    place.leave(Taker("A", one))
    assert one.forward("x") == "A(own(x))"


def test_what_replaced_the_method_in_between_is_the_original_of_the_next(owner: type[Layer]) -> None:
    one = owner()
    place, taker = Junction(owner, "forward"), Taker("A", one)
    place.join(taker)
    place.leave(taker)
    wrap(owner)
    place.join(taker)
    assert one.forward("x") == "A(theirs(own(x)))"
    place.leave(taker)
    assert one.forward("x") == "theirs(own(x))"


def test_a_patch_above_ours_stays_and_ours_is_not_doubled(owner: type[Layer]) -> None:
    one = owner()
    place, taker = Junction(owner, "forward"), Taker("A", one)
    place.join(taker)
    wrap(owner)
    place.leave(taker)
    assert one.forward("x") == "theirs(own(x))"
    place.join(taker)
    assert one.forward("x") == "theirs(A(own(x)))"


def test_a_kept_bound_method_goes_on_as_the_original(owner: type[Layer]) -> None:
    one = owner()
    place, taker = Junction(owner, "forward"), Taker("A", one)
    place.join(taker)
    kept = one.forward
    place.leave(taker)
    assert kept("x") == "own(x)"


def test_who_traces_gets_the_original(owner: type[Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    one = owner()
    Junction(owner, "forward").join(Taker("A", one))
    monkeypatch.setattr(patching, "is_compiling", lambda: True)
    assert one.forward("x") == "own(x)"


def test_replacement_looks_like_the_original_but_is_known_as_ours(owner: type[Layer]) -> None:
    before = owner.__dict__["forward"]
    Junction(owner, "forward").join(Taker("A"))
    after = owner.__dict__["forward"]
    assert after.__wrapped__ is before
    assert (is_ours(after), is_ours(before), is_ours(Layer.forward)) == (True, False, False)


def test_a_method_has_one_junction_in_the_process(owner: type[Layer]) -> None:
    assert junction(owner, "forward") is junction(owner, "forward")
    assert junction(Layer, "forward") is not junction(owner, "forward")


def test_error_of_a_receiver_comes_out_and_the_class_can_come_back(owner: type[Layer]) -> None:
    class Broken(Taker):
        def receive(self, *args: Any) -> str:
            raise ZeroDivisionError

    before, one = owner.__dict__["forward"], owner()
    place, taker = Junction(owner, "forward"), Broken("A", one)
    place.join(taker)
    with pytest.raises(ZeroDivisionError):
        one.forward("x")
    place.leave(taker)
    assert owner.__dict__["forward"] is before
