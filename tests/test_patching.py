"""A class's method is replaced once and put back, whatever others do to it in between."""

from collections.abc import Callable
from typing import Any

import pytest

from lib_accel.patching import Patch

Method = Callable[..., Any]


@pytest.fixture
def owner() -> type:
    """A class with a method of its own, new for each test."""

    class Own:
        def forward(self, x: str) -> str:
            return f"own({x})"

    return Own


@pytest.fixture
def heir(owner: type) -> type:
    """A class that inherits the method."""
    return type("Heir", (owner,), {})


class Switch:
    """Ours: acts as the original once it is switched off, as whoever makes a replacement has to see to."""

    is_on = True

    def make(self, original: Method) -> Method:
        def forward(module: Any, x: str) -> str:
            result = original(module, x)
            return f"ours({result})" if self.is_on else result

        return forward


def ours(original: Method) -> Method:
    return Switch().make(original)


def bury(owner: type) -> Method:
    """Somebody else wraps whatever is there; returns what was."""
    below = owner.forward  # type: ignore[attr-defined]

    def forward(module: Any, x: str) -> str:
        return f"theirs({below(module, x)})"

    owner.forward = forward  # type: ignore[attr-defined]
    return below


def call(owner: type) -> str:
    return owner().forward("x")  # type: ignore[no-any-return]


def test_making_a_patch_changes_nothing(owner: type) -> None:
    patch = Patch(owner, "forward", ours)
    assert call(owner) == "own(x)"
    assert not patch.is_on_top


def test_applied_patch_is_called_and_reaches_the_original(owner: type) -> None:
    patch = Patch(owner, "forward", ours)
    patch.apply()
    assert call(owner) == "ours(own(x))"
    assert patch.is_on_top


def test_undo_gives_the_same_function_back(owner: type) -> None:
    before = owner.__dict__["forward"]
    patch = Patch(owner, "forward", ours)
    patch.apply()
    patch.undo()
    assert owner.__dict__["forward"] is before
    assert not patch.is_on_top


def test_undo_of_an_inherited_method_leaves_no_attribute_behind(owner: type, heir: type) -> None:
    patch = Patch(heir, "forward", ours)
    patch.apply()
    assert (call(heir), call(owner)) == ("ours(own(x))", "own(x)")
    patch.undo()
    assert "forward" not in heir.__dict__
    assert call(heir) == "own(x)"


def test_patch_is_made_once_however_often_it_is_applied(owner: type) -> None:
    made: list[Method] = []
    patch = Patch(owner, "forward", lambda original: made.append(original) or ours(original))
    for _ in range(3):
        patch.apply()
    assert len(made) == 1
    assert call(owner) == "ours(own(x))"


def test_second_undo_changes_nothing(owner: type, heir: type) -> None:
    for patched in (owner, heir):
        patch = Patch(patched, "forward", ours)
        patch.apply()
        patch.undo()
        before = dict(patched.__dict__)
        patch.undo()
        assert dict(patched.__dict__) == before


@pytest.mark.parametrize(
    ("steps", "is_ours"),
    [
        ("undo", False),
        ("undo apply", True),
        ("undo undo apply", True),
        ("apply undo apply", True),
        ("apply undo undo apply", True),
        ("apply undo undo apply undo", False),
        ("apply apply undo", False),
        ("apply undo apply undo apply", True),
    ],
)
@pytest.mark.parametrize("kind", ["owner", "heir"])
def test_last_step_decides_in_any_order(
    steps: str, is_ours: bool, kind: str, request: pytest.FixtureRequest
) -> None:
    patched = request.getfixturevalue(kind)
    patch = Patch(patched, "forward", ours)
    for step in steps.split():
        getattr(patch, step)()
    assert call(patched) == ("ours(own(x))" if is_ours else "own(x)")


def test_undo_below_somebody_elses_wrapper_leaves_theirs_in_place(owner: type) -> None:
    switch = Switch()
    patch = Patch(owner, "forward", switch.make)
    patch.apply()
    bury(owner)
    assert call(owner) == "theirs(ours(own(x)))"
    patch.undo()
    switch.is_on = False
    assert call(owner) == "theirs(own(x))"
    assert not patch.is_on_top


@pytest.mark.parametrize(
    "steps", ["apply", "apply apply", "undo apply", "undo undo apply", "undo apply apply"]
)
def test_apply_below_somebody_elses_wrapper_neither_drops_it_nor_runs_ours_twice(
    steps: str, owner: type
) -> None:
    patch = Patch(owner, "forward", ours)
    patch.apply()
    bury(owner)
    for step in steps.split():
        getattr(patch, step)()
    assert call(owner) == "theirs(ours(own(x)))"


def test_wrapper_that_was_there_first_is_the_original(owner: type) -> None:
    bury(owner)
    theirs = owner.__dict__["forward"]
    patch = Patch(owner, "forward", ours)
    patch.apply()
    assert call(owner) == "ours(theirs(own(x)))"
    patch.undo()
    assert owner.__dict__["forward"] is theirs


def test_undo_works_again_once_somebody_else_took_their_wrapper_off(owner: type) -> None:
    before = owner.__dict__["forward"]
    patch = Patch(owner, "forward", ours)
    patch.apply()
    below = bury(owner)
    patch.undo()
    owner.forward = below  # type: ignore[attr-defined]
    patch.undo()
    assert owner.__dict__["forward"] is before


def test_patch_that_somebody_overwrote_with_the_original_is_applied_again(owner: type) -> None:
    before = owner.__dict__["forward"]
    patch = Patch(owner, "forward", ours)
    patch.apply()
    owner.forward = before  # type: ignore[attr-defined]
    patch.apply()
    assert call(owner) == "ours(own(x))"


def test_bound_method_that_somebody_kept_works_after_undo(owner: type) -> None:
    switch = Switch()
    patch = Patch(owner, "forward", switch.make)
    patch.apply()
    instance = owner()
    kept = instance.forward
    patch.undo()
    switch.is_on = False
    instance.forward = kept
    assert instance.forward("x") == "own(x)"


def test_patch_is_undone_after_an_error_in_the_replacement(owner: type) -> None:
    def broken(original: Method) -> Method:
        def forward(module: Any, x: str) -> str:
            raise ZeroDivisionError

        return forward

    patch = Patch(owner, "forward", broken)
    patch.apply()
    with pytest.raises(ZeroDivisionError):
        call(owner)
    patch.undo()
    assert call(owner) == "own(x)"


def test_error_while_the_replacement_is_made_changes_nothing(owner: type) -> None:
    before = dict(owner.__dict__)
    with pytest.raises(ZeroDivisionError):
        Patch(owner, "forward", lambda original: 1 / 0)  # type: ignore[arg-type,return-value]
    assert dict(owner.__dict__) == before


def test_patches_of_a_class_and_its_heir_come_off_in_either_order(owner: type, heir: type) -> None:
    for first, second in ((0, 1), (1, 0)):
        before = (dict(owner.__dict__), dict(heir.__dict__))
        patches = [Patch(owner, "forward", ours), Patch(heir, "forward", ours)]
        for patch in patches:
            patch.apply()
        patches[first].undo()
        patches[second].undo()
        assert (dict(owner.__dict__), dict(heir.__dict__)) == before
