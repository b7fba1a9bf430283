"""Blocks of diffusers in all their forms: ours, with the same result, or live, with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from lib_accel.engine import Engine
from tests.diffusers.models import difference
from tests.fakes.host import attached

CHANNELS, SOURCE = 16, 12

pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput` is deprecated")


class Built(NamedTuple):
    """A block, and the arguments of a call of it."""

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - a default of a named tuple, which nobody changes


def image(channels: int = CHANNELS) -> Tensor:
    return torch.randn(2, channels, 6, 8)


def res(*args: Any, **options: Any) -> Built:
    settings = {"in_channels": CHANNELS, "temb_channels": 8, "groups": 4} | options
    emb = None if settings["temb_channels"] is None else torch.randn(2, 8)
    return Built(ResnetBlock2D(**settings), (image(), emb, *args))


def transformer(*, given: dict[str, Any] | None = None, **options: Any) -> Built:
    settings = {"in_channels": CHANNELS, "cross_attention_dim": SOURCE, "norm_num_groups": 4} | options
    module = Transformer2DModel(2, CHANNELS // 2, **settings)
    context = torch.randn(2, 5, SOURCE)
    return Built(module, (image(),), {"encoder_hidden_states": context} | (given or {}))


def upsample(*args: Any, **options: Any) -> Built:
    return Built(Upsample2D(CHANNELS, **({"use_conv": True} | options)), (image(), *args))


def downsample(**options: Any) -> Built:
    return Built(Downsample2D(CHANNELS, **({"use_conv": True} | options)), (image(),))


def embedding(*args: Any, **options: Any) -> Built:
    return Built(TimestepEmbedding(8, 16, **options), (torch.randn(2, 8), *args))


def hint() -> Built:
    module = ControlNetConditioningEmbedding(CHANNELS, block_out_channels=(4, 8))
    for weight in module.parameters():  # the last are zeros
        nn.init.normal_(weight, std=0.2)
    return Built(module, (torch.randn(2, 3, 8, 8),))


def vae_attention(*, given: dict[str, Any] | None = None, **options: Any) -> Built:
    settings = {"heads": 2, "dim_head": 8, "norm_num_groups": 4, "residual_connection": True, "bias": True}
    return Built(Attention(CHANNELS, **(settings | options)), (image(),), given or {})


def changed(built: Built, path: str, change: Callable[[Any], object]) -> Built:
    change(built.module.get_submodule(path))
    return built


def with_value(built: Built, path: str, **values: Any) -> Built:
    return changed(built, path, lambda module: vars(module).update(values))


FIRST = "transformer_blocks.0"

OURS: dict[str, Callable[[], Built]] = {
    "residual": res,
    "residual that widens": lambda: res(out_channels=2 * CHANNELS),
    "residual with a large shortcut": lambda: res(out_channels=8, use_in_shortcut=True),
    "residual of a VAE": lambda: res(temb_channels=None),
    "transformer": transformer,
    "transformer with linear projections": lambda: transformer(use_linear_projection=True, num_layers=3),
    "attention to the prompt only": lambda: transformer(only_cross_attention=True),
    "two self-attentions": lambda: transformer(
        cross_attention_dim=None, double_self_attention=True, given={"encoder_hidden_states": None}
    ),
    "attention with biases": lambda: transformer(attention_bias=True),
    "attention as GLIGEN has it, without boxes": lambda: transformer(attention_type="gated"),
    "upcasting that its processor does not heed": lambda: transformer(upcast_attention=True),
    "transformer without a prompt": lambda: transformer(
        cross_attention_dim=CHANNELS, given={"encoder_hidden_states": None}
    ),
    "upsampling": upsample,
    "upsampling to a size": lambda: upsample((9, 15)),
    "upsampling of another name": lambda: upsample(name="Conv2d_0", out_channels=8),
    "downsampling": downsample,
    "downsampling of a VAE's encoder": lambda: downsample(padding=0),
    "downsampling of another name": lambda: downsample(name="op"),
    "embedding": embedding,
    "embedding of another width": lambda: embedding(out_dim=4),
    "hint": hint,
    "attention of a VAE": vae_attention,
    "attention of a VAE in one head": lambda: vae_attention(heads=1, dim_head=CHANNELS),
    "circular padding": lambda: with_value(res(), "conv1", padding_mode="circular"),
    "a hint with a hook on one layer": lambda: changed(
        hint(), "conv_in", lambda conv: conv.register_forward_hook(lambda *args: args[2] * 2)
    ),
}

# What was built, and words of the reason.
LIVE: dict[str, tuple[Callable[[], Built], str]] = {
    "residual that resizes up": (lambda: res(up=True), "upsample="),
    "residual that resizes down": (lambda: res(down=True), "downsample="),
    "residual that is divided": (lambda: res(output_scale_factor=2.0), "output_scale_factor=2.0"),
    "residual with another activation": (lambda: res(non_linearity="gelu"), "GELU where"),
    "residual that scales and shifts": (
        lambda: res(time_embedding_norm="scale_shift"),
        "time_embedding_norm=scale_shift",
    ),
    "residual without an activation of time": (lambda: res(skip_time_act=True), "skip_time_act=True"),
    "residual that drops": (lambda: res(dropout=0.5), "dropout of 0.5"),
    "padding by reflection": (lambda: with_value(res(), "conv1", padding_mode="reflect"), "'reflect'"),
    "upsampling without convolution": (lambda: upsample(use_conv=False), "use_conv=False"),
    "upsampling by convolution": (lambda: upsample(use_conv_transpose=True), "use_conv_transpose=True"),
    "upsampling after a norm": (
        lambda: upsample(norm_type="ln_norm", eps=1e-5, elementwise_affine=True),
        "norm=LayerNorm",
    ),
    "upsampling that does not enlarge": (lambda: upsample(interpolate=False), "interpolate=False"),
    "downsampling by pooling": (lambda: downsample(use_conv=False), "use_conv=False"),
    "downsampling after a norm": (
        lambda: downsample(norm_type="ln_norm", eps=1e-5, elementwise_affine=True),
        "norm=LayerNorm",
    ),
    "embedding with another activation": (lambda: embedding(act_fn="gelu"), "GELU where"),
    "embedding activated at the end": (lambda: embedding(post_act_fn="silu"), "post_act=SiLU"),
    "embedding with a condition": (
        lambda: embedding(torch.randn(2, 6), cond_proj_dim=6),
        "TimestepEmbedding is called with condition",
    ),
    "feed-forward of another kind": (lambda: transformer(activation_fn="gelu"), "ff: found"),
    "transformer that drops": (lambda: transformer(dropout=0.5), "attn1: dropout of 0.5"),
    "no second attention": (
        lambda: transformer(cross_attention_dim=None, given={"encoder_hidden_states": None}),
        "without a second attention",
    ),
    "chunks": (lambda: with_value(transformer(), FIRST, _chunk_size=4, _chunk_dim=1), "_chunk_size=4"),
    "a mask of the prompt": (
        lambda: transformer(given={"encoder_attention_mask": torch.ones(2, 5)}),
        "is called with encoder_attention_mask",
    ),
    "a mask of the image": (
        lambda: transformer(given={"attention_mask": torch.ones(2, 48)}),
        "is called with attention_mask",
    ),
    "a timestep": (lambda: transformer(given={"timestep": torch.ones(2)}), "is called with timestep"),
    "labels": (lambda: transformer(given={"class_labels": torch.ones(2)}), "is called with class_labels"),
    "more conditions": (
        lambda: transformer(given={"added_cond_kwargs": {}}),
        "is called with added_cond_kwargs",
    ),
    "unscaled attention": (lambda: with_value(transformer(), f"{FIRST}.attn1", scale=1.0), "scales by 1.0"),
    "attention of a VAE without residual": (
        lambda: vae_attention(residual_connection=False),
        "residual_connection=False",
    ),
    "attention that is divided": (
        lambda: vae_attention(rescale_output_factor=2.0),
        "rescale_output_factor=2.0",
    ),
    "normed queries": (lambda: vae_attention(qk_norm="layer_norm"), "norm_q=LayerNorm"),
    "attention with a mask": (
        lambda: vae_attention(given={"attention_mask": torch.zeros(2, 1, 48)}),
        "Attention is called with attention_mask",
    ),
    "attention over tokens": (
        lambda: Built(vae_attention().module, (torch.randn(2, 48, CHANNELS),)),
        "over 3 dimensions",
    ),
}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with attached() as engine:
        engine.detach()
        yield engine


def results(engine: Engine, built: Built) -> tuple[Tensor, Tensor]:
    """What the block gives by itself, and with the engine in front of it."""
    built.module.eval()
    found = []
    for step in (engine.detach, engine.attach):
        step()
        result = built.module(*built.args, **built.kwargs)
        found.append(result if isinstance(result, Tensor) else result.sample)
    return found[0], found[1]


@pytest.mark.parametrize("name", OURS)
def test_block_is_ours_with_the_same_result(name: str, engine: Engine) -> None:
    stock, ours = results(engine, OURS[name]())
    assert difference(ours, stock) <= 1e-6
    assert (engine.generation.direct > 0, engine.generation.host) == (True, name.count("hook"))


@pytest.mark.parametrize("name", LIVE)
def test_block_is_live_with_the_same_result_and_a_reason(name: str, engine: Engine) -> None:
    build, words = LIVE[name]
    stock, ours = results(engine, build())
    assert difference(ours, stock) <= 1e-6
    assert engine.generation.direct == 0
    assert [reason for reason in engine.generation.reasons if words in reason]


def test_context_for_each_depth_is_not_what_diffusers_means_by_a_list(engine: Engine) -> None:
    module, _, kwargs = transformer(num_layers=2)
    engine.attach()
    with pytest.raises(AttributeError):  # as without us
        module(image(), encoder_hidden_states=[kwargs["encoder_hidden_states"]] * 2)
    assert "Transformer2DModel is called with a list of contexts" in engine.generation.reasons


def test_attention_without_a_norm_is_no_block_of_its_own(engine: Engine) -> None:
    engine.attach()
    Attention(CHANNELS)(torch.randn(2, 3, CHANNELS))
    assert (engine.generation.direct, engine.generation.host) == (0, 0)


def test_fewer_heads_of_keys_than_of_queries_are_refused(engine: Engine) -> None:
    engine.attach()
    with pytest.raises(RuntimeError):  # plain processors cannot either
        vae_attention(kv_heads=1).module(image())
    assert list(engine.generation.reasons) == ["Attention with inner_kv_dim=8, expected 16"]


@pytest.mark.parametrize("args", [(), (torch.zeros(1, 16, 4, 4), None, 1.0)])
def test_wrong_arguments_are_for_the_class_to_judge(args: tuple[Any, ...], engine: Engine) -> None:
    engine.attach()
    block = res().module
    with pytest.raises((TypeError, AttributeError, FutureWarning)):
        block(*args)
    assert (engine.generation.direct, engine.generation.host) == (0, 0)
