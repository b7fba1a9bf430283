"""What others changed runs as it is, the report says why, and the picture stays theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from lib_accel.hosts.diffusers import Handle
from tests.diffusers import models
from tests.diffusers.test_equality import LIMIT, Accelerate

STEPS = 3
TRANSFORMERS, RESIDUALS, BLOCKS = 4, 8, 15  # of the tiny SD1 UNet


@pytest.fixture
def pipe() -> Any:
    """A pipeline with models of its own."""
    return models.own_pipeline()


class Louder(AttnProcessor2_0):
    """Somebody's attention: not ours to compute."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return 1.5 * super().__call__(*args, **kwargs)


class Merging(BasicTransformerBlock):
    """A block as ToMe makes it, by changing the class of the instance."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(hidden_states.flip(1), *args, **kwargs).flip(1) + hidden_states


def change_attention(pipe: Any, which: str, processor: Any) -> None:
    processors = dict(pipe.unet.attn_processors)
    changed = {name: processor if which in name else old for name, old in processors.items()}
    pipe.unet.set_attn_processor(changed)


def chunk(pipe: Any, size: int | None) -> None:
    for block in models.parts_of(pipe.unet, "BasicTransformerBlock"):
        block.set_chunk_feed_forward(size, dim=1)


def swap_classes(pipe: Any) -> None:
    for block in models.parts_of(pipe.unet, "BasicTransformerBlock"):
        block.__class__ = Merging


def hook_leaves(pipe: Any) -> None:
    for conv in models.parts_of(pipe.unet, "Conv2d"):
        add_hook_to_module(conv, AlignDevicesHook("cpu", io_same_device=True))


def replace_forward(pipe: Any) -> None:
    for conv in models.parts_of(pipe.unet, "ResnetBlock2D"):
        below = conv.conv2.forward
        conv.conv2.forward = lambda x, below=below: 1.1 * below(x)


def hook_inner(pipe: Any) -> None:
    for block in models.parts_of(pipe.unet, "ResnetBlock2D"):
        block.norm1.register_forward_hook(lambda module, args, output: output * 1.1)


def replace_leaves(pipe: Any) -> None:
    class Quantized(nn.Linear):
        pass

    for layer in models.parts_of(pipe.unet, "Attention"):
        layer.to_q.__class__ = Quantized


# What is done to a pipeline, how many blocks of one call of the UNet stay live, and what is said about them.
CHANGES: dict[str, tuple[Callable[[Any], object], int, str]] = {
    "processor of cross-attention": (
        lambda pipe: change_attention(pipe, "attn2", Louder()),
        TRANSFORMERS,
        "attn2: has the attention processor tests.diffusers.test_fallbacks.Louder",
    ),
    "processor of self-attention": (
        lambda pipe: change_attention(pipe, "attn1", Louder()),
        TRANSFORMERS,
        "attn1: has the attention processor",
    ),
    "fused projections": (
        lambda pipe: pipe.unet.fuse_qkv_projections(),
        TRANSFORMERS,
        "attn1: has the attention processor diffusers.models.attention_processor.FusedAttnProcessor2_0",
    ),
    "chunks": (
        lambda pipe: chunk(pipe, 2),
        TRANSFORMERS,
        "ff: BasicTransformerBlock with _chunk_size=2",
    ),
    "another class of block": (swap_classes, TRANSFORMERS, "Merging where"),
    "accelerate's hooks of leaves": (hook_leaves, RESIDUALS + TRANSFORMERS + 2, "has a forward of its own"),
    "a layer's own forward": (replace_forward, RESIDUALS, "Conv2d has a forward of its own"),
    "a hook inside": (hook_inner, RESIDUALS, "GroupNorm has a forward hook"),
    "another class of layer": (replace_leaves, TRANSFORMERS, "Quantized where"),
    "dropout": (
        lambda pipe: [
            setattr(block.dropout, "p", 0.5) for block in models.parts_of(pipe.unet, "ResnetBlock2D")
        ],
        RESIDUALS,
        "dropout of 0.5",
    ),
    "casts between layers": (
        lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
        BLOCKS,
        "has a forward of its own",
    ),
}


def live_blocks(handle: Handle) -> tuple[int, int]:
    """How many of the UNet's blocks the report counts as live, and how many ran so in the generation."""
    unet = next(model for model in handle.report().models if model.name == "unet")
    return unet.blocks.host, handle.report().generation.host


@pytest.mark.parametrize("name", CHANGES)
def test_change_before_is_heeded(name: str, pipe: Any, accelerate: Accelerate) -> None:
    change, live, reason = CHANGES[name]
    change(pipe)
    before = models.picture(pipe, steps=STEPS)
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe, steps=STEPS), before) <= LIMIT
    assert live_blocks(handle) == (live, STEPS * live)
    assert [text for text in handle.report().generation.reasons if reason in text]


@pytest.mark.parametrize("name", CHANGES)
def test_change_after_is_heeded(name: str, pipe: Any, accelerate: Accelerate) -> None:
    change, live, _ = CHANGES[name]
    handle = accelerate(pipe)
    models.picture(pipe, steps=1)
    change(pipe)
    handle.enabled = False
    before = models.picture(pipe, steps=STEPS)
    handle.enabled = True
    handle.begin_generation()
    assert models.difference(models.picture(pipe, steps=STEPS), before) <= LIMIT
    assert live_blocks(handle) == (live, STEPS * live)


def test_chunks_stay_as_small_as_was_asked_for(pipe: Any, accelerate: Accelerate) -> None:
    chunk(pipe, 2)
    sizes = set()
    for layer in models.parts_of(pipe.unet, "FeedForward"):
        layer.register_forward_hook(lambda module, args, output: sizes.add(output.shape[1]))
    accelerate(pipe)
    with torch.no_grad():
        models.call(pipe.unet)
    assert sizes == {2}


class OnceInThree:
    """A forward that gives its latest result again at the next two calls, as DeepCache does."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward, self.calls, self.latest = forward, 0, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls % STEPS == 1:
            self.latest = self.forward(*args, **kwargs)
        return self.latest


def cache_blocks(pipe: Any) -> None:
    for block in pipe.unet.mid_block.children():
        for layer in block:
            layer.forward = OnceInThree(layer.forward)


# What changes nothing that our functions compute.
HARMLESS: dict[str, Callable[[Any], object]] = {
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "sliced attention": lambda pipe: pipe.enable_attention_slicing(1),
    "plain attention": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
    "training mode": lambda pipe: pipe.unet.train(),
    "a hook on the whole UNet": lambda pipe: add_hook_to_module(pipe.unet, AlignDevicesHook("cpu")),
    "a forward hook on a block": lambda pipe: pipe.unet.mid_block.resnets[0].register_forward_hook(
        lambda module, args, output: output * 1.1
    ),
    "a forward hook on the UNet": lambda pipe: pipe.unet.register_forward_pre_hook(lambda *args: None),
    "a block that is skipped": lambda pipe: setattr(
        pipe.unet.mid_block, "forward", lambda hidden_states, *args, **kwargs: hidden_states
    ),
    "blocks that run once in three steps": cache_blocks,
    "unfused again": lambda pipe: (pipe.unet.fuse_qkv_projections(), pipe.unet.unfuse_qkv_projections()),
    "no chunks again": lambda pipe: (chunk(pipe, 2), chunk(pipe, None)),
    "tiling": lambda pipe: [
        setattr(conv, "padding_mode", "circular") for conv in models.parts_of(pipe.unet, "Conv2d")
    ],
    "blocks loaded as they are needed": lambda pipe: pipe.unet.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_concern_our_functions_leaves_all_blocks_ours(
    name: str, pipe: Any, accelerate: Accelerate
) -> None:
    HARMLESS[name](pipe)
    before = models.picture(pipe, steps=STEPS)
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe, steps=STEPS), before) <= LIMIT
    assert live_blocks(handle) == (0, 0)


@pytest.mark.parametrize("name", HARMLESS)
def test_nor_does_it_if_it_comes_later(name: str, pipe: Any, accelerate: Accelerate) -> None:
    handle = accelerate(pipe)
    models.picture(pipe, steps=1)
    HARMLESS[name](pipe)
    handle.enabled = False
    before = models.picture(pipe, steps=STEPS)
    handle.enabled = True
    assert models.difference(models.picture(pipe, steps=STEPS), before) <= LIMIT
    assert live_blocks(handle) == (0, 0)


# Arguments of a call of the UNet that our transformer does not know.
ARGUMENTS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "mask of the prompt": (
        lambda: {"encoder_attention_mask": torch.arange(77)[None].expand(2, -1) < 9},
        "Transformer2DModel is called with encoder_attention_mask",
    ),
    "arguments for processors": (
        lambda: {"cross_attention_kwargs": {"temb": torch.zeros(1)}},
        "Transformer2DModel is called with temb",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_unusual_argument_keeps_transformers_live(name: str, pipe: Any, accelerate: Accelerate) -> None:
    given, reason = ARGUMENTS[name]
    with torch.no_grad():
        before = models.call(pipe.unet, **given())
        handle = accelerate(pipe)
        assert torch.equal(models.call(pipe.unet, **given()), before)
    assert dict(handle.report().generation.reasons) == {reason: TRANSFORMERS}


def test_gradients_are_left_to_diffusers(pipe: Any, accelerate: Accelerate) -> None:
    bias = pipe.unet.conv_in.bias.requires_grad_(True)
    models.call(pipe.unet).square().sum().backward()
    before, bias.grad = bias.grad, None
    handle = accelerate(pipe)
    models.call(pipe.unet).square().sum().backward()
    assert torch.equal(bias.grad, before)
    assert dict(handle.report().generation.reasons) == {"gradients are on, as in training": BLOCKS}
