"""The layers of transformers' CLIP, old and new: what is read, what calls are ours, what a layer returns."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from lib_accel.blocks.encoder import EncoderSpec, Mask
from lib_accel.errors import LayoutError
from lib_accel.layouts import clip
from lib_accel.layouts.entries import Inputs, Model
from tests.fakes.models import randomized
from tests.fakes.text_encoders import CLIP_HOME, HEADS, WIDTH, config, old_clip, tiny_clip
from tests.fakes.vae import nobody

LAYER: Any = clip.ENTRIES[0]
ENCODER: Any = clip.ENTRIES[1]
HOMES = {"installed": importlib.import_module(CLIP_HOME), "old": old_clip()}


def layer(home: str = "installed", **options: str) -> Any:
    return randomized(HOMES[home].CLIPEncoderLayer(config(**options)), 0)


def read(module: Any, trust: Callable[[Any], bool] = nobody) -> Any:
    (candidate,) = LAYER.candidates(module, trust)
    return candidate.read()


@pytest.mark.parametrize("home", HOMES)
def test_weights_are_read_in_the_order_that_the_function_takes_them(home: str) -> None:
    module = layer(home)
    names = ("layer_norm1", *(f"self_attn.{each}_proj" for each in ("q", "k", "v", "out")), "layer_norm2")
    names += ("mlp.fc1", "mlp.fc2")
    expected = [
        (module.get_submodule(name)._parameters, kind) for name in names for kind in ("weight", "bias")
    ]
    slots = zip(read(module).slots, expected, strict=True)
    assert all(slot.parameters is own and slot.name == kind for slot, (own, kind) in slots)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_spec_is_all_that_is_not_a_tensor(activation: str) -> None:
    module = layer(activation=activation)
    module.layer_norm2.eps = 1e-3
    assert read(module).spec == EncoderSpec(HEADS, (1e-5, 1e-3), activation)


def test_layers_and_their_encoder_are_named_as_the_package_names_them() -> None:
    model = tiny_clip()
    encoder = next(each for each in model.modules() if type(each).__name__ == "CLIPEncoder")
    for entry, module in ((LAYER, encoder.layers[0]), (ENCODER, encoder)):
        assert entry.path == f"{type(module).__module__}.{type(module).__name__}"
    assert isinstance(ENCODER, Model)


# What only the live layer can run


class OtherAttention(nn.Module):
    """An attention that some extension put in."""


def _other(self: Any, x: Tensor, *rest: Any) -> Tensor:
    return x


def _observe(module: nn.Module, inputs: Any, output: Any = None) -> None:
    """A hook that only looks; one that changes something looks the same from outside."""


def _own_forward(path: str) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        target = module.get_submodule(path)
        target.forward = types.MethodType(_other, target)

    return change


def _dropping(module: Any) -> None:
    module.self_attn.dropout = 0.1
    module.train()


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "foreign attention": (lambda m: setattr(m, "self_attn", OtherAttention()), "OtherAttention"),
    "foreign mlp": (lambda m: setattr(m, "mlp", nn.Sequential()), "container.Sequential"),
    "other activation": (lambda m: setattr(m.mlp, "activation_fn", ACT2FN["gelu_new"]), "NewGELUActivation"),
    "other norm": (lambda m: setattr(m, "layer_norm2", nn.Identity()), "linear.Identity"),
    "norm of two dimensions": (
        lambda m: setattr(m, "layer_norm1", nn.LayerNorm((2, WIDTH))),
        r"\(2, 32\), expected one",
    ),
    "dropout while training": (_dropping, "attention dropout of 0.1"),
    "attention computed elsewhere": (
        lambda m: setattr(m.self_attn.config, "_attn_implementation", "mine"),
        "computed by 'mine'",
    ),
    "forward of the attention": (_own_forward("self_attn"), "CLIPAttention has a forward of its own: _other"),
    "forward of a projection": (_own_forward("self_attn.k_proj"), "Linear has a forward of its own"),
    "forward of the mlp": (_own_forward("mlp"), "CLIPMLP has a forward of its own"),
    "forward of the activation": (_own_forward("mlp.activation_fn"), "has a forward of its own"),
    "hook on the attention": (
        lambda m: m.self_attn.register_forward_hook(_observe),
        "CLIPAttention has a forward hook",
    ),
    "hook on the mlp": (lambda m: m.mlp.register_forward_pre_hook(_observe), "CLIPMLP has a forward hook"),
    "hook on a norm": (lambda m: m.layer_norm1.register_forward_hook(_observe), "LayerNorm has a forward h"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_layer_of_another_structure_is_refused_with_what_was_found(
    change: Callable[[Any], Any], reason: str
) -> None:
    module = layer()
    change(module)
    with pytest.raises(LayoutError, match=reason):
        read(module)


def test_dropout_of_a_layer_that_is_not_trained_does_not_matter() -> None:
    module = layer()
    module.self_attn.dropout = 0.1
    assert read(module).slots


def test_patched_class_is_refused_unless_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HOMES["installed"].CLIPMLP, "forward", _other)
    with pytest.raises(LayoutError, match=r"CLIPMLP\.forward was replaced by _other"):
        read(layer())
    assert read(layer(), trust=lambda method: method is _other).slots


def test_a_layer_made_before_attention_was_a_matter_of_choice_is_read() -> None:
    module = layer("old")
    module.self_attn.config = types.SimpleNamespace()
    assert read(module).slots


# Arguments


X = torch.zeros(2, 3, WIDTH)
LOW = torch.full((1, 1, 3, 3), -1.0)
SEES = torch.ones(1, 1, 3, 3, dtype=torch.bool)

TAKEN: dict[str, tuple[tuple[Any, ...], dict[str, Any], Mask]] = {
    "transformers 5": ((X, None), {"is_causal": True, "output_hidden_states": -2}, Mask(None, True)),
    "transformers 5, a picture": ((X,), {"attention_mask": None, "return_dict": False}, Mask()),
    "transformers 5, masked": ((X, SEES), {"is_causal": True}, Mask(SEES)),
    "not said whether causal": ((X, None), {"is_causal": None}, Mask()),
    "transformers 4": ((X, None, LOW), {"output_attentions": False}, Mask(LOW)),
    "transformers 4, a picture": ((X, None, None), {"output_attentions": None}, Mask()),
    "what is not asked for": ((X, None), {"position_ids": None, "use_cache": False}, Mask()),
}


@pytest.mark.parametrize(("args", "options", "mask"), TAKEN.values(), ids=TAKEN)
def test_call_is_read_into_states_and_a_mask(
    args: tuple[Any, ...], options: dict[str, Any], mask: Mask
) -> None:
    found = LAYER.inputs(*args, **options)
    assert found == Inputs(X, context=mask)


def test_two_masks_are_added() -> None:
    found = LAYER.inputs(X, LOW, 2 * LOW, output_attentions=False).context
    assert torch.equal(found.bias, 3 * LOW)
    assert not found.is_causal


REFUSED_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "weights of the attention": ((X, None, LOW), {"output_attentions": True}, "the attention's weights"),
    "unknown option": ((X, None), {"position_bias": LOW, "softcap": 1.0}, "with position_bias, softcap$"),
    "padding as tokens": ((X, torch.ones(2, 3)), {}, "a mask of another form"),
    "mask of blocks": ((X, object()), {}, "a mask of another form"),
    "two masks that are not numbers": ((X, SEES, SEES), {}, "two masks that do not add up"),
}


@pytest.mark.parametrize(("args", "options", "reason"), REFUSED_CALLS.values(), ids=REFUSED_CALLS)
def test_call_of_another_form_is_refused(args: tuple[Any, ...], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(LayoutError, match=reason):
        LAYER.inputs(*args, **options)


# Results


@pytest.mark.parametrize(("home", "is_tuple"), [("installed", False), ("old", True)])
def test_result_has_the_form_of_its_version(home: str, is_tuple: bool) -> None:
    result = LAYER.output(layer(home), X, {})
    assert (result[0] if is_tuple else result) is X
    assert isinstance(result, tuple) == is_tuple


def test_a_wrapped_layer_class_returns_what_its_version_does(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = HOMES["old"].CLIPEncoderLayer
    monkeypatch.setattr(kind, "forward", lambda self, *args, **kwargs: None)
    assert LAYER.output(layer("old"), X, {}) == (X,)
