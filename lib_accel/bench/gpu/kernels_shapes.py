"""At which shapes the kernels are measured: those of SD1.5 at 512 pixels, SDXL and its VAE at 1024."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

# How blocks use a group norm; of kernels_subjects.py.
HALF_SILU, SINGLE_SILU, SINGLE = "rounded, SiLU", "float32, SiLU", "float32"
SHIFTED = "shifted, rounded, SiLU"


class Shape(NamedTuple):
    """What one kernel is called with, in float16."""

    kernel: str  # of lib_accel.kernels
    sizes: tuple[int, ...]  # of what goes in; of one weight for lora_fuse
    toy: tuple[int, ...]  # the same in a dry run
    is_last: bool = False  # whether images lie in memory with their channels last
    norm: str = ""
    right: int = 0  # channels of a second image, after those of `sizes`
    readers: int = 1  # linear layers that take the result, each of which casts it for itself in plain torch
    layers: int = 0  # weights of one launch
    networks: int = 0  # LoRAs on each of them

    def named(self, model: str) -> str:
        """What tells it from all others."""
        first = "x".join(map(str, self.sizes))
        words = [f"{first} and {self.right}" if self.right else first, self.norm]
        if len(self.sizes) == 4:
            words.append("channels last" if self.is_last else "channels first")
        if self.readers > 1:
            words.append(f"read by {self.readers}")
        if self.layers:
            words.append(f"{self.layers} layers")
            words.append(f"{self.networks} LoRA{'' if self.networks == 1 else 's'}")
        return f"{self.kernel} {model}: {', '.join(filter(None, words))}"


# Images: channels and latents' side of a level. Channels of the other image of a joined norm come third.
_UNETS = {
    "sd15": ((320, 64), (640, 32), (1280, 16), (1280, 8)),
    "sdxl": ((320, 128), (640, 64), (1280, 32)),
}
_FRAMES = {"sd15": ((320, 64), (1280, 16)), "sdxl": ((640, 64), (1280, 32))}
# Ends of a residual block's convolutions: the first with the embedding's shift, the second with the residual.
_RESIDUALS = {"sd15": ((320, 64), (1280, 16)), "sdxl": ((320, 128), (1280, 32))}
_JOINED = {
    "sd15": ((640, 64, 320), (1280, 32, 640), (1280, 16, 1280)),
    "sdxl": ((640, 128, 320), (1280, 64, 640), (1280, 32, 1280)),
}
_VAE = ((512, 128), (512, 256), (256, 512), (128, 1024))

# Tokens: how many, and channels. A UNet is called with two of each, for guidance.
_TOKENS = {
    "sd15": ((4096, 320), (1024, 640), (256, 1280), (64, 1280)),
    "sdxl": ((4096, 640), (1024, 1280)),
}

# Weights of transformers: out and in, how many of them are changed together, LoRAs of rank 16.
_WEIGHTS = {
    "sd15": ((320, 320, 30, 1), (1280, 1280, 36, 1), (1280, 1280, 36, 4)),
    "sdxl": ((1280, 1280, 20, 4), (10240, 1280, 4, 4)),
}

_TOY_IMAGE, _TOY_TOKENS, _TOY_WEIGHT = (1, 64, 4, 6), (1, 6, 64), (32, 48)
_TOY_RIGHT, _TOY_LAYERS = 32, 2


def _image(kernel: str, norm: str, batch: int, channels: int, side: int, right: int = 0) -> Iterator[Shape]:
    for is_last in (False, True):
        yield Shape(kernel, (batch, channels, side, side), _TOY_IMAGE, is_last, norm, right)


def _shapes() -> Iterator[tuple[str, Shape]]:
    for model, levels in _UNETS.items():
        for channels, side in levels:
            for shape in _image("group_norm", HALF_SILU, 2, channels, side):
                yield model, shape
    for model, levels in _FRAMES.items():
        for channels, side in levels:
            for shape in _image("group_norm", SINGLE, 2, channels, side):
                yield model, shape
    for model, levels in _RESIDUALS.items():
        for channels, side in levels:
            for kernel, norm in (("group_norm", SHIFTED), ("bias_residual", "")):
                for shape in _image(kernel, norm, 2, channels, side):
                    yield model, shape
    for channels, side in _VAE:
        for shape in _image("group_norm", SINGLE_SILU, 1, channels, side):
            yield "vae", shape
    for model, pairs in _JOINED.items():
        for channels, side, right in pairs:
            for shape in _image("group_norm_joined", HALF_SILU, 2, channels, side, right):
                yield model, shape
    for model, tokens in _TOKENS.items():
        for count, channels in tokens:
            for readers in (1, 3):
                yield model, Shape("layer_norm", (2, count, channels), _TOY_TOKENS, readers=readers)
            yield model, Shape("geglu", (2, count, 8 * channels), _TOY_TOKENS)
            yield model, Shape("linear_geglu", (2, count, channels), _TOY_TOKENS)
    for model, weights in _WEIGHTS.items():
        for height, width, layers, networks in weights:
            yield (
                model,
                Shape("lora_fuse", (height, width), _TOY_WEIGHT, layers=layers, networks=networks),
            )


# By the name of their case.
SHAPES: Mapping[str, Shape] = MappingProxyType({shape.named(model): shape for model, shape in _shapes()})


def toy_of(shape: Shape) -> Shape:
    """The same at a tiny size."""
    return shape._replace(
        sizes=shape.toy,
        right=_TOY_RIGHT if shape.right else 0,
        layers=_TOY_LAYERS if shape.layers else 0,
    )
