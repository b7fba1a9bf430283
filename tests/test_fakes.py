"""The models that other tests rely on: nothing in them is zero, so that nothing can be left out unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tests.fakes.models import (
    difference,
    inputs,
    run,
    tiny_controlnet,
    tiny_inpaint_unet,
    tiny_sd2_unet,
    tiny_sgm_unet,
    tiny_unet,
)

CASES = [
    pytest.param(tiny_unet, {}, id="sd1"),
    pytest.param(tiny_sd2_unet, {}, id="sd2"),
    pytest.param(tiny_inpaint_unet, {"channels": 9}, id="inpaint"),
    pytest.param(tiny_sgm_unet, {"vector": True}, id="sgm"),
]


@pytest.mark.parametrize(("make", "given"), CASES)
def test_every_residual_branch_is_a_tenth_of_what_it_is_added_to(
    make: Callable[[], nn.Module], given: dict[str, Any]
) -> None:
    unet = make()
    shares = _watch_branches(unet)
    run(unet, inputs(**given))
    assert len(shares) > 15
    assert {name: share for name, share in shares.items() if share < 0.1} == {}


@pytest.mark.parametrize("make", [tiny_unet, tiny_sd2_unet, tiny_sgm_unet, tiny_controlnet])
def test_no_parameter_is_constant(make: Callable[[], nn.Module]) -> None:
    assert [name for name, each in make().named_parameters() if float(each.std()) < 1e-3] == []


@pytest.mark.parametrize(("make", "given"), CASES)
@pytest.mark.parametrize("field", ["x", "timesteps", "context", "y"])
def test_every_input_moves_the_picture(
    make: Callable[[], nn.Module], given: dict[str, Any], field: str
) -> None:
    unet, before = make(), inputs(**given)
    if getattr(before, field) is None:
        return
    after = before._replace(**{field: getattr(before, field) * 0.5})
    assert difference(run(unet, after), run(unet, before)) > 0.01


def _watch_branches(unet: nn.Module) -> dict[str, float]:
    """How large each branch of the next call is beside what it is added to, by the name of the branch."""
    shares: dict[str, float] = {}
    for name, module in unet.named_modules():
        kind = type(module).__name__
        if kind == "ResBlock":
            _watch(shares, name, module.skip_connection, module.out_layers)
        elif kind == "SpatialTransformer":
            module.register_forward_hook(_share_of_frame(shares, name))
        elif kind == "BasicTransformerBlock":
            for part, norm in (("attn1", "norm1"), ("attn2", "norm2"), ("ff", "norm3")):
                _watch(shares, f"{name}.{part}", getattr(module, norm), getattr(module, part), use_input=True)
    return shares


def _watch(
    shares: dict[str, float], name: str, trunk: nn.Module, branch: nn.Module, use_input: bool = False
) -> None:
    sizes: dict[str, float] = {}

    def note_trunk(module: nn.Module, args: Any, output: Any) -> None:
        sizes["trunk"] = float((args[0] if use_input else output).norm())
        note()

    def note_branch(module: nn.Module, args: Any, output: Any) -> None:
        sizes["branch"] = float(output.norm())
        note()

    def note() -> None:
        if len(sizes) == 2:
            shares[name] = sizes["branch"] / sizes["trunk"]

    trunk.register_forward_hook(note_trunk)
    branch.register_forward_hook(note_branch)


def _share_of_frame(shares: dict[str, float], name: str) -> Callable[..., None]:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        shares[name] = float((output - args[0]).norm() / args[0].norm())

    return note
