"""At which sizes operators are measured: of SD1.5 at 512 pixels, of SDXL and the VAE at 1024, and odd ones.

Names of operators are those of blocks/operators/table.py, which needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

ATTENTION, GATED_LINEAR, LINEAR_ADD, LAYER_NORM = (
    "attention",
    "gated linear",
    "linear, residual",
    "layer norm",
)
GROUP_NORM, CONVOLUTION_NORM, CONVOLUTION_ADD, RESIDUAL_LAYOUT = (
    "group norm",
    "convolution, norm",
    "convolution, residual",
    "residual block, memory format",
)
JOINED_NORM = "join, group norm"
PROJECTIONS_PACKED = "projections, attention"
VAE = "vae"


class Shape(NamedTuple):
    """One call of an operator, in half precision under autocast."""

    operator: str
    model: str
    sizes: tuple[int, ...]  # (batch, tokens, channels), or (batch, channels, height, width), of each image
    heads: int = 0
    source: int = 0  # tokens of a prompt that are attended to; 0 for its own
    inner: int = 0  # channels that a linear layer takes
    is_last: bool = False  # whether images and weights lie in memory with their channels last

    @property
    def name(self) -> str:
        """What tells it from all others."""
        words = [f"{self.operator} {self.model}: {'x'.join(map(str, self.sizes))}"]
        if self.heads:
            words.append(f"{self.heads} head{'' if self.heads == 1 else 's'}")
            words.append(f"{self.source} tokens" if self.source else "self")
        if self.inner:
            words.append(f"of {self.inner}")
        if self.is_last:
            words.append("channels last")
        return ", ".join(words)


class Level(NamedTuple):
    """A self-attention of a UNet, which is called with two pictures for guidance."""

    tokens: int
    channels: int
    heads: int


LEVELS: Mapping[str, Sequence[Level]] = MappingProxyType(
    {
        "sd15": (
            Level(4096, 320, 8),
            Level(1024, 640, 8),
            Level(256, 1280, 8),
            Level(64, 1280, 8),
        ),
        "sdxl": (Level(4096, 640, 10), Level(1024, 1280, 20)),
    }
)
_SOURCES = {"sd15": (0, 77, 154), "sdxl": (0, 77)}
_PIXELS = (16384, 512)  # of the VAE's attention, which has one head

_IMAGES = {
    "sd15": ((2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16)),
    "sdxl": ((2, 320, 128, 128), (2, 640, 64, 64), (2, 1280, 32, 32)),
    VAE: ((1, 512, 128, 128), (1, 256, 512, 512), (1, 128, 1024, 1024)),
}


def _of_tokens() -> Iterator[Shape]:
    for model, levels in LEVELS.items():
        for tokens, channels, heads in levels:
            for source in _SOURCES[model]:
                yield Shape(ATTENTION, model, (2, tokens, channels), heads, source)
            for source in _SOURCES[model][:2]:
                yield Shape(PROJECTIONS_PACKED, model, (2, tokens, channels), heads, source)
    yield Shape(ATTENTION, VAE, (1, *_PIXELS), 1)
    for model, levels in LEVELS.items():
        for tokens, channels, _ in levels:
            sizes = 2, tokens, channels
            yield Shape(GATED_LINEAR, model, sizes)
            for inner in (channels, 4 * channels):
                yield Shape(LINEAR_ADD, model, sizes, inner=inner)
            yield Shape(LAYER_NORM, model, sizes)


def _of_images() -> Iterator[Shape]:
    for model, images in _IMAGES.items():
        for sizes in images:
            yield Shape(RESIDUAL_LAYOUT, model, sizes)
            joins = () if model == VAE else (JOINED_NORM,)
            for is_last in (False, True):
                for operator in (GROUP_NORM, CONVOLUTION_NORM, CONVOLUTION_ADD, *joins):
                    yield Shape(operator, model, sizes, is_last=is_last)


# By the name of their case.
SHAPES: Mapping[str, Shape] = MappingProxyType({each.name: each for each in (*_of_tokens(), *_of_images())})


# Share of the speed that tuning would give it, which a size that nobody tuned is to have.
ENOUGH = 0.95


class Near(NamedTuple):
    """Sizes of one class (tuning.signature): the winner of the first is taken at the others as well."""

    tuned: Shape
    others: tuple[Shape, ...]


def _near(tuned: Shape, *others: Mapping[str, tuple[int, ...] | int]) -> Near:
    changed: list[Shape] = [tuned._replace(**each) for each in others]  # type: ignore[arg-type]
    return Near(tuned, tuple(changed))


# Latents of 72x56 are pictures of 576x448 pixels; those of SDXL's usual sizes beside 1024x1024 are 152x104,
# 144x112, 168x96 and 136x104, of which its levels have halves and quarters.
_NEAR = (
    _near(
        Shape(ATTENTION, "sd15", (2, 72 * 56, 320), 8),
        {"sizes": (2, 80 * 48, 320)},
        {"sizes": (2, 88 * 40, 320)},
    ),
    _near(
        Shape(ATTENTION, "sd15", (2, 64 * 64, 320), 8, 77),
        {"sizes": (2, 72 * 56, 320)},
        {"sizes": (2, 80 * 56, 320)},
    ),
    _near(
        Shape(ATTENTION, "sdxl", (2, 38 * 26, 1280), 20),
        {"sizes": (2, 36 * 28, 1280)},
        {"sizes": (2, 34 * 26, 1280)},
    ),
    _near(
        Shape(PROJECTIONS_PACKED, "sdxl", (2, 38 * 26, 1280), 20),
        {"sizes": (2, 36 * 28, 1280)},
        {"sizes": (2, 34 * 26, 1280)},
    ),
    _near(
        Shape(GATED_LINEAR, "sdxl", (2, 32 * 32, 1280)),
        {"sizes": (2, 40 * 28, 1280)},
        {"sizes": (2, 36 * 30, 1280)},
    ),
    _near(
        Shape(LINEAR_ADD, "sdxl", (2, 76 * 52, 640), inner=2560),
        {"sizes": (2, 72 * 56, 640)},
        {"sizes": (2, 68 * 52, 640)},
    ),
    _near(
        Shape(LAYER_NORM, "sd15", (2, 64 * 64, 320)),
        {"sizes": (2, 80 * 56, 320)},
        {"sizes": (2, 72 * 56, 320)},
    ),
    _near(
        Shape(GROUP_NORM, "sd15", (2, 320, 72, 56)), {"sizes": (2, 320, 80, 48)}, {"sizes": (2, 320, 88, 40)}
    ),
    _near(
        Shape(JOINED_NORM, "sdxl", (2, 640, 76, 52)), {"sizes": (2, 640, 72, 56)}, {"sizes": (2, 640, 84, 48)}
    ),
    _near(
        Shape(CONVOLUTION_NORM, "sdxl", (2, 640, 76, 52), is_last=True),
        {"sizes": (2, 640, 72, 56)},
        {"sizes": (2, 640, 84, 48)},
    ),
    _near(
        Shape(CONVOLUTION_ADD, "sdxl", (2, 320, 152, 104), is_last=True),
        {"sizes": (2, 320, 144, 112)},
        {"sizes": (2, 320, 168, 96)},
    ),
    _near(
        Shape(RESIDUAL_LAYOUT, "sdxl", (2, 640, 76, 52)),
        {"sizes": (2, 640, 72, 56)},
        {"sizes": (2, 640, 84, 48)},
    ),
)
NEAR: Mapping[str, Near] = MappingProxyType({each.tuned.name: each for each in _NEAR})


def toy_of(shape: Shape) -> Shape:
    """The same at a tiny size."""
    return shape._replace(
        sizes=(1, 6, 64) if len(shape.sizes) == 3 else (1, 64, 4, 6),
        heads=min(shape.heads, 2),
        source=min(shape.source, 5),
        inner=min(shape.inner, 256),
    )
