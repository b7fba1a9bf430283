"""Blocks of `ldm` and our function for each, over the weights of the same live module.

Norms have 32 groups, so channels are few times 32. All weights are random, those that `ldm` starts at zero
too: a block whose last layer is zero would agree with any function that returns its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import (
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    UNetModel,
    Upsample,
)
from torch import Tensor, nn

from lib_accel.blocks import sample, transformer
from lib_accel.blocks.res import ResWeights, res_block
from lib_accel.blocks.rules import Rules
from lib_accel.layouts import compvis
from lib_accel.layouts.ldm import FAMILY
from lib_accel.layouts.slots import LiveWeights

CHANNELS = 32
EMBEDDING = 48
PROMPT = 7  # tokens of the context

Shapes = Callable[[int, int, int], Sequence[tuple[int, ...]]]  # of the inputs by batch, height, width


class Pair(NamedTuple):
    """A block of the host, and our function for it."""

    module: nn.Module
    host: Callable[..., Tensor]  # of the inputs
    ours: Callable[..., Tensor]  # of the rules, then the inputs
    shapes: Shapes
    has_skip: bool = False  # the first input is added to the result as it is
    norm_upcasts: bool = False  # GroupNorm32, which without autocast refuses half weights

    def draw(self, batch: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Random inputs, the same at every call."""
        noise = torch.Generator().manual_seed(batch * 10_000 + height * 100 + width)
        shapes = self.shapes(batch, height, width)
        device = next(self.module.parameters()).device
        return [torch.randn(shape, generator=noise).to(device, dtype) for shape in shapes]


def randomise(module: nn.Module, seed: int = 1) -> None:
    """Draws every parameter so that each layer keeps about the size of what it gets."""
    noise = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=noise)
        if parameter.dim() > 1:
            drawn *= 1.5 / parameter[0].numel() ** 0.5
        else:
            drawn = drawn * 0.2 + (0 if name.endswith("bias") else 1)
        parameter.data.copy_(drawn)


def nobody(method: Callable[..., Any]) -> bool:
    """Trusts no replaced method."""
    return False


def _weights(kind: Any, reading: Any) -> Any:
    return kind(*LiveWeights(reading.slots).read())


def _image(batch: int, height: int, width: int) -> list[tuple[int, ...]]:
    return [(batch, CHANNELS, height, width)]


def _res(out: int = CHANNELS, **options: Any) -> Pair:
    block = ResBlock(CHANNELS, EMBEDDING, 0.0, out_channels=out, **options)

    def ours(rules: Rules, x: Tensor, emb: Tensor) -> Tensor:
        reading = compvis.read_res_block(block, FAMILY, nobody)
        return res_block(x, emb, _weights(ResWeights, reading), reading.spec, rules)

    def shapes(batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        return [*_image(batch, height, width), (batch, EMBEDDING)]

    return Pair(block, block, ours, shapes, has_skip=out == CHANNELS, norm_upcasts=True)


def _circular(pair: Pair) -> Pair:
    """As the host's tiling leaves a model: every convolution's padding wraps round."""
    for layer in pair.module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
    return pair


def _attend(norm: Any, layer: Any, x: Tensor, context: Tensor | None, rules: Rules) -> Tensor:
    reading = compvis.read_attention(norm, layer, FAMILY, nobody)
    weights = _weights(transformer.AttentionWeights, reading)
    return transformer.attend(x, context, weights, reading.spec, rules)


def _feed(block: Any, x: Tensor, rules: Rules) -> Tensor:
    reading = compvis.read_feed_forward(block.norm3, block.ff, FAMILY, nobody)
    return transformer.feed_forward(x, _weights(transformer.FeedForwardWeights, reading), reading.spec, rules)


def _transformer(depth: int, *, linear: bool, source: int = 24, heads: int = 4) -> Pair:
    block: Any = SpatialTransformer(
        CHANNELS,
        heads,
        CHANNELS // heads,
        depth=depth,
        context_dim=[source] * depth,
        use_linear=linear,
        use_checkpoint=False,
    )

    def host(x: Tensor, context: Tensor) -> Tensor:
        return block(x, [context] * depth)

    def ours(rules: Rules, x: Tensor, context: Tensor) -> Tensor:
        frame = compvis.read_frame(block, FAMILY, nobody)
        weights = _weights(transformer.FrameWeights, frame)
        tokens = transformer.enter(x, weights, frame.spec, rules)
        for each in block.transformer_blocks:
            tokens = _attend(each.norm1, each.attn1, tokens, None, rules)
            tokens = _attend(each.norm2, each.attn2, tokens, context, rules)
            tokens = _feed(each, tokens, rules)
        return transformer.leave(tokens, x, weights, rules)

    def shapes(batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        return [*_image(batch, height, width), (batch, PROMPT, source)]

    return Pair(block, host, ours, shapes, has_skip=True)


def _tokens(batch: int, height: int, width: int) -> list[tuple[int, ...]]:
    return [(batch, height * width, CHANNELS)]


def _self_attention() -> Pair:
    block: Any = BasicTransformerBlock(CHANNELS, 2, CHANNELS // 2, context_dim=24, checkpoint=False)

    def host(x: Tensor) -> Tensor:
        return block.attn1(block.norm1(x)) + x

    def ours(rules: Rules, x: Tensor) -> Tensor:
        return _attend(block.norm1, block.attn1, x, None, rules)

    return Pair(block, host, ours, _tokens, has_skip=True)


def _cross_attention(source: int, heads: int) -> Pair:
    block: Any = BasicTransformerBlock(
        CHANNELS, heads, CHANNELS // heads, context_dim=source, checkpoint=False
    )

    def host(x: Tensor, context: Tensor) -> Tensor:
        return block.attn2(block.norm2(x), context=context) + x

    def ours(rules: Rules, x: Tensor, context: Tensor) -> Tensor:
        return _attend(block.norm2, block.attn2, x, context, rules)

    def shapes(batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        return [*_tokens(batch, height, width), (batch, PROMPT, source)]

    return Pair(block, host, ours, shapes, has_skip=True)


def _feed_forward() -> Pair:
    block: Any = BasicTransformerBlock(CHANNELS, 2, CHANNELS // 2, context_dim=24, checkpoint=False)

    def host(x: Tensor) -> Tensor:
        return block.ff(block.norm3(x)) + x

    def ours(rules: Rules, x: Tensor) -> Tensor:
        return _feed(block, x, rules)

    return Pair(block, host, ours, _tokens, has_skip=True)


def _convolution(layer: nn.Conv2d) -> Pair:
    def ours(rules: Rules, x: Tensor) -> Tensor:
        reading = compvis.read_convolution(layer, FAMILY, nobody)
        return sample.convolution(x, _weights(sample.ConvWeights, reading), reading.spec, rules)

    def shapes(batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        return [(batch, layer.in_channels, height, width)]

    return Pair(layer, layer, ours, shapes)


def _downsample() -> Pair:
    block = Downsample(CHANNELS, True, out_channels=64)

    def ours(rules: Rules, x: Tensor) -> Tensor:
        reading = compvis.read_downsample(block, FAMILY, nobody)
        return sample.convolution(x, _weights(sample.ConvWeights, reading), reading.spec, rules)

    return Pair(block, block, ours, _image)


def _upsample() -> Pair:
    block = Upsample(CHANNELS, True, out_channels=64)

    def ours(rules: Rules, x: Tensor) -> Tensor:
        reading = compvis.read_upsample(block, FAMILY, nobody)
        return sample.upsample(x, _weights(sample.ConvWeights, reading), reading.spec, rules)

    return Pair(block, block, ours, _image)


def _unet(channels: int = 4) -> Any:
    return UNetModel(8, channels, CHANNELS, 4, 1, [], channel_mult=(1,), num_heads=1)


def _out() -> Pair:
    layers = _unet().out

    def ours(rules: Rules, x: Tensor) -> Tensor:
        reading = compvis.read_out(layers, FAMILY, nobody)
        return sample.out_convolution(x, _weights(sample.OutWeights, reading), reading.spec, rules)

    return Pair(layers, layers, ours, _image, norm_upcasts=True)


def _embedding(layers: nn.Module) -> Pair:
    def ours(rules: Rules, x: Tensor) -> Tensor:
        reading = compvis.read_embedding(layers, FAMILY, nobody)
        return sample.embed(x, _weights(sample.EmbeddingWeights, reading), None, rules)

    return Pair(layers, layers, ours, lambda batch, height, width: [(batch, CHANNELS)])


def _hint() -> Pair:
    """The chain that turns a ControlNet's picture into the size of the latents, shortened."""
    chain = TimestepEmbedSequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.SiLU(),
        nn.Conv2d(32, CHANNELS, 3, padding=1, stride=2),
    )

    def ours(rules: Rules, x: Tensor) -> Tensor:
        for link in chain:
            if isinstance(link, nn.SiLU):
                assert compvis.read_silu(link, FAMILY, nobody).slots == ()
                x = sample.silu(x)
            else:
                x = _convolution(link).ours(rules, x)
        return x

    return Pair(
        chain, lambda x: chain(x, None), ours, lambda batch, height, width: [(batch, 3, height, width)]
    )


def _label_embedding() -> nn.Module:
    layers = nn.Sequential(nn.Linear(CHANNELS, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))
    return nn.Sequential(layers)


_KINDS: dict[str, Callable[[], Pair]] = {
    "res block": _res,
    "res block, 1x1 skip": lambda: _res(64),
    "res block, 3x3 skip": lambda: _res(64, use_conv=True),
    "res block, tiling": lambda: _circular(_res(64)),
    "transformer, convolutions, depth 1": lambda: _transformer(1, linear=False),
    "transformer, convolutions, tiling": lambda: _circular(_transformer(1, linear=False)),
    "transformer, linear, depth 2": lambda: _transformer(2, linear=True),
    "transformer, linear, depth 10": lambda: _transformer(10, linear=True),
    "frame alone, convolutions": lambda: _transformer(0, linear=False),
    "frame alone, linear": lambda: _transformer(0, linear=True),
    "self-attention": _self_attention,
    "cross-attention, 768": lambda: _cross_attention(768, heads=8),
    "cross-attention, 1024": lambda: _cross_attention(1024, heads=1),
    "cross-attention, 2048": lambda: _cross_attention(2048, heads=2),
    "cross-attention, 1280": lambda: _cross_attention(1280, heads=4),
    "feed-forward": _feed_forward,
    "downsample": _downsample,
    "upsample": _upsample,
    "upsample, tiling": lambda: _circular(_upsample()),
    "first convolution": lambda: _convolution(_unet().input_blocks[0][0]),
    "first convolution, inpainting": lambda: _convolution(_unet(9).input_blocks[0][0]),
    "zero convolution": lambda: _convolution(nn.Conv2d(CHANNELS, CHANNELS, 1)),
    "hint": _hint,
    "out": _out,
    "time embedding": lambda: _embedding(_unet().time_embed),
    "label embedding": lambda: _embedding(_label_embedding()),
}
NAMES = tuple(_KINDS)
UPCASTING = tuple(name for name in NAMES if name.startswith(("res block", "out")))


def build(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Pair:
    """The pair of this name with random weights."""
    with torch.random.fork_rng(devices=[]):
        pair = _KINDS[name]()
    randomise(pair.module)
    pair.module.eval().to(device, dtype)
    return pair
