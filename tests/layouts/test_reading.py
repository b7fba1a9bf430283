"""Whose code a method is: the class's own, as it was left behind by an undone patch, or somebody else's."""

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
from ldm.modules.diffusionmodules.openaimodel import ResBlock
from ldm.modules.diffusionmodules.util import GroupNorm32
from torch import Tensor, nn

from lib_accel.errors import LayoutError
from lib_accel.layouts.reading import class_name, demand_clean, demand_type, is_original
from tests.layouts import live
from tests.layouts.live import nobody


def foreign(self: Any, *inputs: Any) -> Any:
    return inputs[0]


def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def around(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return around


class Callee:
    """An object that is called as a method would be."""

    def __call__(self, *inputs: Any) -> Any:
        return inputs[0]


def test_method_of_the_class_is_original() -> None:
    assert is_original(ResBlock, ResBlock.forward)
    assert is_original(ResBlock, ResBlock._forward)


def test_inherited_method_is_original() -> None:
    assert is_original(GroupNorm32, nn.GroupNorm.forward)
    assert is_original(ResBlock, nn.Module.__call__)


def test_method_of_an_unrelated_class_is_not_original() -> None:
    assert not is_original(nn.Linear, ResBlock.forward)


def test_function_that_poses_as_the_original_is_not_original() -> None:
    posing = wrapped(ResBlock.forward)
    assert (posing.__module__, posing.__qualname__) == (ResBlock.__module__, "ResBlock.forward")
    assert not is_original(ResBlock, posing)


@pytest.mark.parametrize(
    "method", [Callee(), functools.partial(foreign), len], ids=["object", "partial", "C"]
)
def test_what_has_no_globals_is_not_original(method: Any) -> None:
    assert not is_original(ResBlock, method)


def test_plain_module_is_clean() -> None:
    demand_clean(live.res(), nobody)


@pytest.mark.parametrize("name", ["forward", "_forward", "__call__"])
def test_replaced_method_of_the_class_is_refused_unless_it_is_trusted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = live.res()
    monkeypatch.setattr(ResBlock, name, foreign, raising=False)
    with pytest.raises(LayoutError, match=rf"ResBlock\.{name} was replaced by foreign of tests\.layouts"):
        demand_clean(module, nobody)
    demand_clean(module, lambda method: method is foreign)


def test_wrapped_method_of_the_class_is_refused_though_it_poses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = live.res()
    monkeypatch.setattr(ResBlock, "forward", wrapped(ResBlock.forward))
    with pytest.raises(LayoutError, match=r"was replaced by ResBlock\.forward of tests"):
        demand_clean(module, nobody)


def test_bound_method_of_the_instance_itself_is_clean() -> None:
    module = live.res()
    module.forward = module.forward
    demand_clean(module, nobody)


def test_bound_method_of_another_instance_is_refused() -> None:
    module, neighbour = live.res(), live.res()
    module.forward = neighbour.forward
    with pytest.raises(LayoutError, match=r"ResBlock has a forward of its own: ResBlock\.forward"):
        demand_clean(module, nobody)


@pytest.mark.parametrize("name", ["forward", "_forward"])
def test_foreign_method_bound_to_the_instance_is_refused_unless_it_is_trusted(name: str) -> None:
    module = live.res()
    setattr(module, name, types.MethodType(foreign, module))
    with pytest.raises(LayoutError, match=f"ResBlock has a {name} of its own: foreign of tests"):
        demand_clean(module, nobody)
    demand_clean(module, lambda method: method is foreign)


def test_plain_function_of_an_instance_is_refused_unless_it_is_trusted() -> None:
    module = live.res()
    module.forward = foreign
    with pytest.raises(LayoutError, match="forward of its own: foreign"):
        demand_clean(module, nobody)
    demand_clean(module, lambda method: method is foreign)


@pytest.mark.parametrize("forward", [Callee(), functools.partial(foreign, None)], ids=["object", "partial"])
def test_callable_that_is_no_function_is_refused_even_if_all_are_trusted(forward: Any) -> None:
    module = live.res()
    module.__dict__["forward"] = forward
    with pytest.raises(LayoutError, match=f"forward of its own: {type(forward).__name__}"):
        demand_clean(module, lambda method: True)


def test_trust_is_not_asked_about_plain_modules() -> None:
    asked: list[Any] = []
    demand_clean(live.res(), lambda method: bool(asked.append(method)))
    assert asked == []


def test_hook_is_refused_though_everybody_is_trusted() -> None:
    module = live.res()
    module.register_forward_hook(lambda *_: None, with_kwargs=True)
    with pytest.raises(LayoutError, match="ResBlock has a forward hook"):
        demand_clean(module, lambda method: True)


class Linear(nn.Linear):
    """Has the name of torch's layer and another home."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_class_is_known_by_its_home_too() -> None:
    with pytest.raises(LayoutError, match=r"found tests\.layouts\.test_reading\.Linear where torch\."):
        demand_type(Linear(2, 2), class_name(nn.Linear))


def test_subclass_is_not_the_class() -> None:
    with pytest.raises(LayoutError, match="GroupNorm32 where torch"):
        demand_type(GroupNorm32(1, 2), class_name(nn.GroupNorm))


def test_absent_module_is_reported_as_nothing() -> None:
    with pytest.raises(LayoutError, match=r"found nothing where a\.B or c\.D is expected"):
        demand_type(None, "a.B", "c.D")
