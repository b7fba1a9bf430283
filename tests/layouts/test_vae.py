"""The chain of a live VAE is read in the order in which its owner walks it, or refused with the reason."""

from __future__ import annotations

import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules import model as ldm_model
from torch import Tensor, nn

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.errors import LayoutError
from lib_accel.layouts import vae
from lib_accel.layouts.entries import Inputs
from tests.fakes.vae import chain, picture, sgm_model, tiny_decoder, tiny_encoder

HOMES = [ldm_model, sgm_model()]
DECODER = [
    "convolution",
    *("residual", "image attention", "residual"),
    *("residual", "residual", "upsample"),
    *("residual", "residual"),
    "out",
]
ENCODER = [
    "convolution",
    *("residual", "shrink"),
    "residual",
    *("residual", "image attention", "residual"),
    "out",
]
ATTENTION, UP, DOWN = DECODER.index("image attention"), DECODER.index("upsample"), ENCODER.index("shrink")


@pytest.mark.parametrize("home", HOMES)
def test_decoder_is_read_in_its_order(home: ModuleType) -> None:
    assert [candidate.kind for candidate in chain(tiny_decoder(home))] == DECODER


@pytest.mark.parametrize("home", HOMES)
def test_encoder_is_read_in_its_order(home: ModuleType) -> None:
    assert [candidate.kind for candidate in chain(tiny_encoder(home))] == ENCODER


def test_attention_at_a_level_follows_each_of_its_blocks() -> None:
    decoder = tiny_decoder(attn_resolutions=[8])
    pairs = ["residual", "image attention"]
    assert [each.kind for each in chain(decoder)] == [*DECODER[:4], *pairs, *pairs, *DECODER[6:]]


@pytest.mark.parametrize("make", [tiny_decoder, tiny_encoder])
def test_live_chain_computes_what_the_model_does(make: Callable[..., Any]) -> None:
    model = make(attn_resolutions=[16, 8], ch_mult=(1, 2, 2))
    x = given = picture(1, 4 if make is tiny_decoder else 3, (12, 8))
    for candidate in chain(model):
        x = candidate.call_live(x, None, None)
    assert torch.allclose(x, model(given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_decoder, tiny_encoder])
def test_every_weight_of_the_model_is_read_once(make: Callable[..., Any]) -> None:
    model = make(attn_resolutions=[8])
    slots = [slot for candidate in chain(model) for slot in candidate.read().slots]
    found = [id(slot.parameters[slot.name]) for slot in slots if slot.parameters[slot.name] is not None]
    assert sorted(found) == sorted(map(id, model.parameters()))


def test_shortcut_of_either_kind_is_read() -> None:
    decoder = tiny_decoder()
    narrow = decoder.up[0].block[0]
    wide = ldm_model.ResnetBlock(
        in_channels=64, out_channels=32, dropout=0.0, temb_channels=0, conv_shortcut=True
    )
    assert _read(decoder, 7).spec.skip == ConvSpec()
    decoder.up[0].block[0] = wide
    assert _read(decoder, 7).spec.skip == ConvSpec(padding=(1, 1))
    assert narrow.nin_shortcut.kernel_size == (1, 1)


def test_tiling_is_read_into_every_convolution() -> None:
    model = tiny_encoder()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
    specs = [candidate.read().spec for candidate in chain(model)]
    assert specs[0].circular
    assert specs[1].conv_in.circular
    assert specs[DOWN] == ConvSpec((2, 2), circular=True)


def _read(model: Any, index: int, trust: Callable[[Any], bool] = lambda method: False) -> Any:
    return chain(model, trust)[index].read()


# Blocks that only the live module can run: which, what was done to it, and words of the reason


def _other(self: Any, x: Tensor, *rest: Any) -> Tensor:
    return x


def _observe(module: nn.Module, inputs: Any) -> None:
    """A hook that only looks; one that changes something looks the same from outside."""


class OtherAttention(nn.Module):
    """As xformers' wrapper, or an attention that some extension put in."""


def _replace(path: str, child: nn.Module | None) -> Callable[[Any], None]:
    parent, _, name = path.rpartition(".")
    return lambda model: setattr(model.get_submodule(parent), name, child)


def _set(path: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model.get_submodule(path), name, value)


def _own_forward(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        module.forward = types.MethodType(_other, module)

    return change


def _hook(path: str) -> Callable[[Any], None]:
    return lambda model: model.get_submodule(path).register_forward_pre_hook(_observe)


REFUSED: dict[str, tuple[int, Callable[[Any], None], str]] = {
    "no attention": (ATTENTION, _replace("mid.attn_1", nn.Identity()), "found torch.nn.modules.linear.Id"),
    "foreign attention": (ATTENTION, _replace("mid.attn_1", OtherAttention()), "OtherAttention where ldm"),
    "dropout": (1, _replace("mid.block_1.dropout", nn.Dropout(0.1)), "dropout of 0.1"),
    "other norm": (1, _replace("mid.block_1.norm1", nn.BatchNorm2d(64)), "BatchNorm2d"),
    "other block": (3, _replace("mid.block_2", nn.Conv2d(64, 64, 1)), "found torch.nn.modules.conv.Conv2d"),
    "wide projection": (ATTENTION, _replace("mid.attn_1.q", nn.Conv2d(64, 64, 3)), r"kernel_size=\(3, 3\)"),
    "other padding": (0, _set("conv_in", "padding_mode", "reflect"), "'reflect'"),
    "no convolution after growing": (UP, _set("up.1.upsample", "with_conv", False), "without a conv"),
    "other upsampling": (UP, _replace("up.1.upsample", nn.Upsample()), "upsampling.Upsample"),
    "other last norm": (9, _replace("norm_out", nn.Identity()), "linear.Identity"),
    "nothing for a convolution": (9, _replace("conv_out", None), "found nothing"),
    "forward of a block": (1, _own_forward("mid.block_1"), "ResnetBlock has a forward of its own"),
    "forward of an attention": (ATTENTION, _own_forward("mid.attn_1"), "AttnBlock has a forward of its own"),
    "forward of a layer": (UP, _own_forward("up.1.upsample.conv"), "Conv2d has a forward of its own"),
    "forward of a dropout": (1, _own_forward("mid.block_1.dropout"), "Dropout has a forward of its own"),
    "hook on a block": (3, _hook("mid.block_2"), "ResnetBlock has a forward hook"),
    "hook on an attention": (ATTENTION, _hook("mid.attn_1"), "AttnBlock has a forward hook"),
    "hook on a norm": (ATTENTION, _hook("mid.attn_1.norm"), "GroupNorm has a forward hook"),
    "hook on growing": (UP, _hook("up.1.upsample"), "Upsample has a forward hook"),
    "hook on the last layer": (9, _hook("conv_out"), "Conv2d has a forward hook"),
}


@pytest.mark.parametrize(("index", "change", "reason"), REFUSED.values(), ids=REFUSED)
def test_only_the_changed_block_is_refused_with_what_was_found(
    index: int, change: Callable[[Any], None], reason: str
) -> None:
    decoder = tiny_decoder()
    change(decoder)
    candidates = chain(decoder)
    with pytest.raises(LayoutError, match=reason):
        candidates.pop(index).read()
    assert all(candidate.read().slots for candidate in candidates)


def test_shrinking_by_pooling_is_refused() -> None:
    encoder = tiny_encoder(resamp_with_conv=False)
    with pytest.raises(LayoutError, match="Downsample without a convolution"):
        _read(encoder, DOWN)


def test_attention_whose_class_was_patched_is_refused_unless_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ldm_model.AttnBlock, "forward", _other)
    decoder = tiny_decoder()
    with pytest.raises(LayoutError, match=r"AttnBlock\.forward was replaced by _other of tests\.layouts"):
        _read(decoder, ATTENTION)
    assert _read(decoder, ATTENTION, trust=lambda method: method is _other).slots


@pytest.mark.parametrize("place", ["class", "instance"])
def test_attention_of_sgm_whose_method_was_patched_is_refused(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    decoder = tiny_decoder(sgm_model())
    block = decoder.mid.attn_1
    monkeypatch.setattr(type(block) if place == "class" else block, "attention", _other, raising=False)
    with pytest.raises(LayoutError, match="attention"):
        _read(decoder, ATTENTION)


# Models that only their own forward knows how to walk


WHOLE: dict[str, tuple[Callable[[Any], None], str]] = {
    "give_pre_end": (_set("", "give_pre_end", True), "give_pre_end=True, tanh_out=False"),
    "tanh_out": (_set("", "tanh_out", True), "give_pre_end=False, tanh_out=True"),
    "another middle": (_replace("mid", nn.Sequential()), "container.Sequential"),
    "another level": (_replace("up.0", nn.Sequential()), "container.Sequential"),
    "a list as a chain": (_replace("up.0.block", nn.Sequential()), "container.Sequential"),
    "too few blocks": (lambda model: model.up[0].block.append(nn.Identity()), "3 blocks and 0 attentions"),
    "too few attentions": (
        lambda model: model.up[1].attn.append(nn.Identity()),
        "2 blocks and 1 attentions for 2",
    ),
}


@pytest.mark.parametrize(("change", "reason"), WHOLE.values(), ids=WHOLE)
def test_model_of_another_structure_is_refused_whole(change: Callable[[Any], None], reason: str) -> None:
    decoder = tiny_decoder()
    change(decoder)
    with pytest.raises(LayoutError, match=reason):
        chain(decoder)


def test_hooks_on_what_nobody_calls_do_not_matter() -> None:
    decoder = tiny_decoder()
    for path in ("mid", "up", "up.1", "up.1.block", "up.1.attn"):
        _hook(path)(decoder)
    assert all(candidate.read().slots for candidate in chain(decoder))


# Arguments


def test_image_alone_is_the_input() -> None:
    x = picture()
    assert [entry.inputs(x) for entry in vae.entries("sgm")] == [Inputs(x), Inputs(x)]


@pytest.mark.parametrize(
    ("args", "options", "reason"),
    [((picture(),), {"timesteps": 3}, "timesteps"), ((), {"z": picture()}, "z"), ((), {}, "nothing")],
)
def test_other_arguments_are_named(args: Any, options: dict[str, Any], reason: str) -> None:
    decoder, _ = vae.entries("sgm")
    with pytest.raises(LayoutError, match=f"called with {reason}$"):
        decoder.inputs(*args, **options)
