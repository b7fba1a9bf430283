"""The layers of an OpenCLIP text encoder: what is read, and what calls are ours."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_accel.blocks.encoder import EncoderSpec, Mask
from lib_accel.errors import LayoutError
from lib_accel.layouts import open_clip
from lib_accel.layouts.entries import Inputs
from tests.fakes.models import randomized
from tests.fakes.text_encoders import HEADS, WIDTH, open_clip_transformer
from tests.fakes.vae import nobody

LAYER: Any = open_clip.ENTRIES[0]
HOME = open_clip_transformer()


def layer(**options: Any) -> Any:
    return randomized(HOME.ResidualAttentionBlock(WIDTH, HEADS, **options), 0)


def read(module: Any, trust: Callable[[Any], bool] = nobody) -> Any:
    (candidate,) = LAYER.candidates(module, trust)
    return candidate.read()


def test_weights_are_read_in_the_order_that_the_function_takes_them() -> None:
    module = layer()
    names = ("ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", *[None] * 4)
    names += ("attn.out_proj.weight", "attn.out_proj.bias", "ln_2.weight", "ln_2.bias")
    names += ("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
    expected = [None if name is None else module.get_parameter(name) for name in names]
    found = [slot.parameters[slot.name] for slot in read(module).slots]
    assert list(map(id, found)) == list(map(id, expected))


@pytest.mark.parametrize(("kind", "name"), [(nn.GELU, "gelu"), (HOME.QuickGELU, "quick_gelu")])
def test_spec_is_all_that_is_not_a_tensor(kind: Any, name: str) -> None:
    module = layer(act_layer=kind)
    module.ln_2.eps = 1e-3
    assert read(module).spec == EncoderSpec(HEADS, (1e-5, 1e-3), name, tokens_first=True)


def test_norms_of_either_class_are_read() -> None:
    assert read(layer(norm_layer=nn.LayerNorm)).spec == read(layer()).spec


def test_attention_without_biases_is_read_as_such() -> None:
    module = layer()
    module.attn = nn.MultiheadAttention(WIDTH, HEADS, bias=False)
    slots = read(module).slots
    assert slots[3].parameters[slots[3].name] is None
    assert slots[9].parameters[slots[9].name] is None


def test_a_batch_that_comes_first_is_read() -> None:
    module = layer()
    module.attn.batch_first = True
    assert not read(module).spec.tokens_first


# What only the live layer can run


def _other(self: Any, x: Tensor, *rest: Any, **options: Any) -> Tensor:
    return x


def _observe(module: nn.Module, inputs: Any, output: Any = None) -> None:
    """A hook that only looks; one that changes something looks the same from outside."""


def _attention(**options: Any) -> Callable[[Any], None]:
    return lambda m: setattr(m, "attn", nn.MultiheadAttention(WIDTH, HEADS, **options))


def _dropping(module: Any) -> None:
    module.attn.dropout = 0.1
    module.train()


def _own_forward(path: str) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        target = module.get_submodule(path)
        target.forward = types.MethodType(_other, target)

    return change


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "other attention": (
        lambda m: setattr(m, "attn", nn.Identity()),
        "found torch.nn.modules.linear.Identity",
    ),
    "two widths": (_attention(kdim=8, vdim=8), "of another form"),
    "bias of keys": (_attention(add_bias_kv=True), "of another form"),
    "attention to nothing": (_attention(add_zero_attn=True), "of another form"),
    "dropout while training": (_dropping, "attention dropout of 0.1"),
    "other output": (lambda m: setattr(m.attn, "out_proj", nn.Linear(WIDTH, WIDTH)), "linear.Linear where"),
    "longer mlp": (lambda m: m.mlp.append(nn.Identity()), "4 children, expected 3"),
    "other activation": (lambda m: setattr(m.mlp, "gelu", nn.ReLU()), "activation.ReLU"),
    "approximate activation": (
        lambda m: setattr(m.mlp, "gelu", nn.GELU(approximate="tanh")),
        "GELU approximated by tanh",
    ),
    "other norm": (lambda m: setattr(m, "ln_1", nn.Identity()), "linear.Identity"),
    "attention of an instance": (lambda m: setattr(m, "attention", _other), "attention was replaced"),
    "forward of the attention": (_own_forward("attn"), "MultiheadAttention has a forward of its own"),
    "forward of the mlp": (_own_forward("mlp"), "Sequential has a forward of its own"),
    "forward of a layer": (_own_forward("mlp.c_fc"), "Linear has a forward of its own"),
    "forward of nothing": (_own_forward("ls_1"), "Identity has a forward of its own"),
    "forward of nothing after the mlp": (_own_forward("ls_2"), "Identity has a forward of its own"),
    "hook on the attention": (lambda m: m.attn.register_forward_hook(_observe), "has a forward hook"),
    "hook on a norm": (lambda m: m.ln_2.register_forward_pre_hook(_observe), "LayerNorm has a forward hook"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_layer_of_another_structure_is_refused_with_what_was_found(
    change: Callable[[Any], Any], reason: str
) -> None:
    module = layer()
    change(module)
    with pytest.raises(LayoutError, match=reason):
        read(module)


def test_scaled_branches_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"found open_clip\.transformer\.LayerScale"):
        read(layer(ls_init_value=1e-5))


def test_patched_attention_of_the_class_is_refused_unless_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HOME.ResidualAttentionBlock, "attention", _other)
    with pytest.raises(LayoutError, match="attention was replaced"):
        read(layer())
    assert read(layer(), trust=lambda method: method is _other).slots


def test_a_hook_on_the_output_that_nobody_calls_does_not_matter() -> None:
    module = layer()
    module.attn.out_proj.register_forward_hook(_observe)
    assert read(module).slots


# Arguments


X = torch.zeros(3, 2, WIDTH)
CAUSAL = torch.full((3, 3), float("-inf")).triu(1)


@pytest.mark.parametrize("mask", [CAUSAL, None], ids=["causal", "none"])
def test_call_is_read_into_tokens_and_a_mask(mask: Tensor | None) -> None:
    assert LAYER.inputs(X, attn_mask=mask) == Inputs(X, context=Mask(mask))


REFUSED_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "other keys": ({"k_x": X}, "another source"),
    "other values": ({"v_x": X}, "another source"),
    "mask of each head": ({"attn_mask": CAUSAL.expand(2 * HEADS, 3, 3)}, "a mask of another form"),
    "mask that is cast to numbers": ({"attn_mask": CAUSAL < 0}, "a mask of another form"),
}


@pytest.mark.parametrize(("options", "reason"), REFUSED_CALLS.values(), ids=REFUSED_CALLS)
def test_call_of_another_form_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(LayoutError, match=reason):
        LAYER.inputs(X, **options)
