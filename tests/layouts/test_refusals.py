"""A reader takes a module that our functions can run, and else says what it found instead."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock
from torch import Tensor, nn

from lib_accel.blocks.convolution import ConvSpec
from lib_accel.errors import LayoutError
from tests.layouts import live
from tests.layouts.live import BUILDERS, CHANNELS, read


class OtherNorm(nn.GroupNorm):
    """A norm that some extension put in."""


class OtherAttention(nn.Module):
    """An attention that some extension put in."""


class OtherLinear(nn.Linear):
    """A layer that computes something else than its class's name says."""


def changed(module: Any, path: str, child: Any) -> Any:
    """The module with the child at `path` replaced; a digit counts in a Sequential."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, child)
    return module


def without(module: Any, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    delattr(module.get_submodule(parent), name)
    return module


def with_attribute(module: Any, name: str, value: Any) -> Any:
    setattr(module, name, value)
    return module


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, **({"kernel_size": 3, "padding": 1} | options))


def _drops(module: Any, path: str) -> Any:
    return changed(module, path, nn.Dropout(0.1))


def _longer(module: Any, path: str) -> Any:
    module.get_submodule(path).append(nn.SiLU())
    return module


# What was built, the reader, and words that the reason must hold.
REFUSED: dict[str, tuple[str, Callable[[], Any], str]] = {
    "resampling up": ("res", lambda: live.res(up=True), "updown"),
    "resampling down": ("res", lambda: live.res(down=True), "updown"),
    "scale-shift norm": ("res", lambda: live.res(use_scale_shift_norm=True), "use_scale_shift_norm"),
    "no embedding": ("res", lambda: with_attribute(live.res(), "skip_t_emb", True), "skip_t_emb"),
    "swapped axes": (
        "res",
        lambda: with_attribute(live.res(), "exchange_temb_dims", True),
        "exchange_temb_dims",
    ),
    "dropout": ("res", lambda: live.res(dropout=0.25), "dropout of 0.25"),
    "dropout in the attention": ("self-attention", lambda: live.block(dropout=0.5), "dropout of 0.5"),
    "dropout in the feed-forward": ("feed-forward", lambda: live.block(dropout=0.5), "dropout of 0.5"),
    "padding same": ("res", lambda: changed(live.res(), "in_layers.2", conv(padding="same")), "'same'"),
    "padding valid": ("convolution", lambda: conv(padding="valid"), "'valid'"),
    "padding reflect": ("convolution", lambda: conv(padding_mode="reflect"), "'reflect'"),
    "padding replicate": (
        "out",
        lambda: changed(live.out(), "2", conv(padding_mode="replicate")),
        "'replicate'",
    ),
    "average pooling": ("downsample", lambda: live.downsample(use_conv=False), "convolution: False"),
    "downsampling a volume": ("downsample", lambda: live.downsample(dims=3), "3 dimensions"),
    "upsampling alone": ("upsample", lambda: live.upsample(use_conv=False), "convolution: False"),
    "upsampling a volume": ("upsample", lambda: live.upsample(dims=3), "3 dimensions"),
    "upsampling by four": (
        "upsample",
        lambda: with_attribute(live.upsample(), "scale_factor", 4),
        "Upsample by 4",
    ),
    "volume": ("convolution", lambda: nn.Conv3d(4, 4, 3), "conv.Conv3d"),
    "norm of a subclass": (
        "res",
        lambda: changed(live.res(), "out_layers.0", OtherNorm(32, CHANNELS)),
        "OtherNorm",
    ),
    "norm of another kind": (
        "frame",
        lambda: changed(live.transformer(), "norm", nn.BatchNorm2d(CHANNELS)),
        "BatchNorm2d",
    ),
    "group norm of tokens": (
        "self-attention",
        lambda: changed(live.block(), "norm1", nn.GroupNorm(2, CHANNELS)),
        "GroupNorm",
    ),
    "layer norm of images": (
        "cross-attention",
        lambda: changed(live.block(), "norm2", nn.LayerNorm((4, CHANNELS))),
        r"\(4, 32\)",
    ),
    "norm without weights": (
        "feed-forward",
        lambda: changed(live.block(), "norm3", without(nn.LayerNorm(CHANNELS), "weight")),
        "LayerNorm has no parameter 'weight'",
    ),
    "linear of a subclass": (
        "cross-attention",
        lambda: changed(live.block(), "attn2.to_k", OtherLinear(8, CHANNELS)),
        "OtherLinear",
    ),
    "attention of another class": (
        "cross-attention",
        lambda: changed(live.block(), "attn2", OtherAttention()),
        "OtherAttention",
    ),
    "old attention": (
        "self-attention",
        lambda: changed(live.block(), "attn1", AttentionBlock(CHANNELS)),
        "openaimodel.AttentionBlock",
    ),
    "ungated feed-forward": ("feed-forward", lambda: live.block(gated_ff=False), "container.Sequential"),
    "other activation": ("res", lambda: changed(live.res(), "in_layers.1", nn.GELU()), "activation.GELU"),
    "other activation in an embedding": (
        "embedding",
        lambda: changed(live.embedding(), "1", nn.ReLU()),
        "activation.ReLU",
    ),
    "other link of a hint": ("silu", lambda: nn.GELU(), "activation.GELU"),
    "other skip": ("res", lambda: changed(live.res(), "skip_connection", nn.Linear(4, 4)), "linear.Linear"),
    "nothing for a projection": (
        "frame",
        lambda: changed(live.transformer(), "proj_in", None),
        "found nothing",
    ),
    "linear projection where none is promised": (
        "frame",
        lambda: changed(live.transformer(), "proj_in", nn.Linear(CHANNELS, CHANNELS)),
        "linear.Linear",
    ),
    "convolution where linear is promised": (
        "frame",
        lambda: changed(live.transformer(use_linear=True), "proj_out", conv(kernel_size=1, padding=0)),
        "conv.Conv2d",
    ),
    "projection of kernel 3": (
        "frame",
        lambda: changed(live.transformer(), "proj_in", conv()),
        r"kernel_size=\(3, 3\)",
    ),
    "projection with stride": (
        "frame",
        lambda: changed(live.transformer(), "proj_out", conv(kernel_size=1, padding=0, stride=2)),
        r"stride=\(2, 2\)",
    ),
    "projection of groups": (
        "frame",
        lambda: changed(live.transformer(), "proj_out", conv(kernel_size=1, padding=0, groups=2)),
        "groups=2",
    ),
    "padded projection": (
        "frame",
        lambda: changed(live.transformer(), "proj_out", conv(kernel_size=1)),
        r"padding=\(1, 1\)",
    ),
    "longer Sequential": ("res", lambda: _longer(live.res(), "in_layers"), "4 children, expected 3"),
    "shorter Sequential": ("res", lambda: without(live.res(), "out_layers.2"), "3 children, expected 4"),
    "longer output of the attention": (
        "self-attention",
        lambda: _longer(live.block(), "attn1.to_out"),
        "3 children, expected 2",
    ),
    "longer feed-forward": (
        "feed-forward",
        lambda: _longer(live.block(), "ff.net"),
        "4 children, expected 3",
    ),
    "embedding of one layer": ("embedding", lambda: nn.Linear(8, 8), "linear.Linear"),
    "embedding table": ("embedding", lambda: nn.Embedding(8, 8), "sparse.Embedding"),
    "longer embedding": ("embedding", lambda: nn.Sequential(*live.embedding(), nn.SiLU()), "4 children"),
    "shorter output": ("out", lambda: live.out()[:2], "2 children, expected 3"),
}


@pytest.mark.parametrize(("kind", "make", "reason"), REFUSED.values(), ids=REFUSED)
def test_module_of_another_structure_is_refused_with_what_was_found(
    kind: str, make: Callable[[], Any], reason: str
) -> None:
    with pytest.raises(LayoutError, match=reason):
        read(kind, make())


@pytest.mark.parametrize("kind", BUILDERS)
def test_module_as_its_class_builds_it_is_read(kind: str) -> None:
    slots = read(kind, BUILDERS[kind]()).slots
    assert bool(slots) == (kind != "silu")


MISSING = {
    "res": "emb_layers",
    "frame": "proj_in",
    "self-attention": "attn1",
    "cross-attention": "attn2.to_k",
    "feed-forward": "ff",
    "downsample": "op",
    "upsample": "conv",
}


@pytest.mark.parametrize(("kind", "path"), MISSING.items())
def test_missing_child_is_named(kind: str, path: str) -> None:
    with pytest.raises((LayoutError, AttributeError), match=path.rpartition(".")[2]):
        read(kind, without(BUILDERS[kind](), path))


def test_layer_that_a_sequential_runs_twice_counts_twice() -> None:
    silu = nn.SiLU()
    layers = nn.Sequential(nn.Linear(8, 16), silu, nn.Linear(16, 16), silu)
    with pytest.raises(LayoutError, match="4 children, expected 3"):
        read("embedding", layers)


def _tiled(module: Any) -> Any:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
    return module


def test_circular_padding_is_read_into_the_spec() -> None:
    spec = read("res", _tiled(live.res(64))).spec
    assert spec.conv_in.circular
    assert spec.conv_out.circular
    assert read("downsample", _tiled(live.downsample())).spec == ConvSpec((2, 2), (1, 1), circular=True)


def test_circular_padding_of_a_1x1_projection_is_accepted() -> None:
    assert read("frame", _tiled(live.transformer())) is not None


def test_convolution_is_read_with_all_that_is_not_a_tensor() -> None:
    layer = nn.Conv2d(8, 4, (3, 5), stride=(1, 2), padding=(2, 3), dilation=(2, 1), groups=2)
    assert read("convolution", layer).spec == ConvSpec((1, 2), (2, 3), (2, 1), 2)


def test_norm_is_read_with_whether_it_upcasts() -> None:
    assert read("out", live.out()).spec.norm == (32, 1e-5, True)
    assert read("frame", live.transformer()).spec == (32, 1e-6, False)


def test_attention_is_read_with_its_heads_and_its_norms_epsilon() -> None:
    block = live.block()
    block.norm1.eps = 1e-3
    assert read("self-attention", block).spec == (1e-3, 2)


@pytest.mark.parametrize(("linear", "kind"), [(True, nn.Linear), (False, nn.Conv2d)])
def test_transformer_is_read_with_either_projection(linear: bool, kind: type) -> None:
    transformer = live.transformer(use_linear=linear)
    slots = read("frame", transformer).slots
    assert type(transformer.proj_in) is kind
    assert slots[2].parameters is transformer.proj_in._parameters
    assert slots[4].parameters is transformer.proj_out._parameters


# What somebody may hang on a live module without changing its structure.
PLACES = {
    "res": ("", "in_layers", "in_layers.0", "in_layers.1", "emb_layers.1", "out_layers.2", "skip_connection"),
    "frame": ("", "norm", "proj_in", "proj_out"),
    "cross-attention": ("norm2", "attn2", "attn2.to_q", "attn2.to_k", "attn2.to_out", "attn2.to_out.0"),
    "feed-forward": ("norm3", "ff", "ff.net", "ff.net.0", "ff.net.0.proj", "ff.net.1", "ff.net.2"),
    "downsample": ("", "op"),
    "upsample": ("", "conv"),
    "embedding": ("", "0", "1"),
    "out": ("", "0", "1", "2"),
}
EVERY_PLACE = [(kind, place) for kind, places in PLACES.items() for place in places]


def other(self: Any, x: Tensor, *rest: Any) -> Tensor:
    return x


def observe(module: nn.Module, inputs: Any, output: Any = None) -> None:
    """A hook that only looks; one that changes something looks the same from outside."""


@pytest.mark.parametrize(("kind", "place"), EVERY_PLACE)
def test_forward_of_an_instance_is_refused_wherever_it_is(kind: str, place: str) -> None:
    module = BUILDERS[kind]()
    target = module.get_submodule(place)
    target.forward = types.MethodType(other, target)
    with pytest.raises(
        LayoutError, match=rf"{type(target).__name__} has a forward of its own: other of tests"
    ):
        read(kind, module)


@pytest.mark.parametrize(("kind", "place"), EVERY_PLACE)
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hook_is_refused_wherever_it_is(kind: str, place: str, register: str) -> None:
    module = BUILDERS[kind]()
    target = module.get_submodule(place)
    handle = getattr(target, register)(observe)
    with pytest.raises(LayoutError, match=f"{type(target).__name__} has a forward hook"):
        read(kind, module)
    handle.remove()
    assert read(kind, module).slots


@pytest.mark.parametrize(("kind", "place"), EVERY_PLACE)
def test_forward_replaced_in_a_class_is_refused_wherever_it_is_used(
    kind: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = BUILDERS[kind]()
    owner = type(module.get_submodule(place))
    monkeypatch.setattr(owner, "forward", other)
    with pytest.raises(LayoutError, match=r"\.forward was replaced by other of tests\.layouts"):
        read(kind, module)


def test_weight_norm_is_refused() -> None:
    module = live.upsample()
    torch.nn.utils.parametrizations.weight_norm(module.conv)
    with pytest.raises(LayoutError, match="ParametrizedConv2d"):
        read("upsample", module)
