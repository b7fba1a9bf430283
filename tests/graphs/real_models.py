"""The real architectures on the meta device, where weights take no memory, and what their blocks are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import torch
from ldm.modules.diffusionmodules import openaimodel as ldm_openaimodel
from torch import Tensor, nn

from lib_accel.blocks.kinds import compute
from lib_accel.blocks.rules import AS_IT_COMES, Rules
from lib_accel.calls import ModelCall
from lib_accel.choice import Block
from lib_accel.graphs.proof import DIRECT
from lib_accel.graphs.structure import Structure, normalized, structure_of
from lib_accel.layouts import ENTRIES
from lib_accel.layouts.entries import Unit
from lib_accel.layouts.reading import class_name
from lib_accel.layouts.slots import LiveWeights
from lib_accel.steps import choose
from tests.fakes.models import sgm_openaimodel


class Config(NamedTuple):
    """A UNet of the CompVis code line."""

    channels: int
    multiples: tuple[int, ...]
    depths: tuple[int, ...]  # of the transformers at each level, 0 for none
    context: int
    heads: int = -1  # each of 64 channels, if not given
    is_linear: bool = False  # the projections of a transformer
    adm: int | None = None  # width of the vector besides the context
    channels_in: int = 4


SD1 = Config(320, (1, 2, 4, 4), (1, 1, 1, 0), 768, heads=8)
SD2 = Config(320, (1, 2, 4, 4), (1, 1, 1, 0), 1024, is_linear=True)
INPAINTING = SD1._replace(channels_in=9)
SDXL = Config(320, (1, 2, 4), (0, 2, 10), 2048, is_linear=True, adm=2816)
REFINER = Config(384, (1, 2, 4, 4), (0, 4, 4, 0), 1280, is_linear=True, adm=2560)

_RES_BLOCKS = 2  # a level


@functools.cache
def ldm_unet(config: Config) -> nn.Module:
    """The UNet, of the class that SD1 and SD2 have."""
    with torch.device("meta"):
        return ldm_openaimodel.UNetModel(  # type: ignore[no-any-return]
            image_size=32,
            in_channels=config.channels_in,
            out_channels=4,
            model_channels=config.channels,
            num_res_blocks=_RES_BLOCKS,
            attention_resolutions=[2**level for level, depth in enumerate(config.depths) if depth],
            channel_mult=config.multiples,
            num_heads=config.heads,
            num_head_channels=-1 if config.heads > 0 else 64,
            use_spatial_transformer=True,
            use_linear_in_transformer=config.is_linear,
            transformer_depth=1,
            context_dim=config.context,
            use_checkpoint=False,
            legacy=False,
        )


@functools.cache
def sgm_unet(config: Config) -> nn.Module:
    """The containers of the UNet, of the stand-ins for the classes that SDXL has."""
    with torch.device("meta"):
        return nn.ModuleList([*_Sgm(config).first_half(), *_Sgm(config).second_half()])


@functools.cache
def sgm_controlnet(config: Config) -> nn.Module:
    """The containers of a control model for that UNet: sd-webui-controlnet has them of sgm's classes."""
    with torch.device("meta"):
        half = _Sgm(config).first_half()
        blocks: Any = type(half[0])
        zeros = [
            blocks(nn.Conv2d(width, width, 1)) for width in {each * config.channels for each in (1, 2, 4)}
        ]
        hint = blocks(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, config.channels, 3, padding=1))
        return nn.ModuleList([*half, *zeros, hint])


class _Sgm:
    """The blocks in the order in which sgm's UNetModel makes them."""

    def __init__(self, config: Config) -> None:
        self._config, self._home = config, sgm_openaimodel()
        self._emb = 4 * config.channels

    def first_half(self) -> list[nn.Module]:
        """Down to the middle."""
        config, home = self._config, self._home
        width, widths = config.channels, self._widths()
        blocks = [home.TimestepEmbedSequential(nn.Conv2d(config.channels_in, width, 3, padding=1))]
        for level, (out, depth) in enumerate(zip(widths, config.depths, strict=True)):
            for _ in range(_RES_BLOCKS):
                blocks.append(self._block(width, out, depth))
                width = out
            if level < len(widths) - 1:
                blocks.append(home.TimestepEmbedSequential(home.Downsample(width, True)))
        middle = self._block(width, width, max(config.depths))
        middle.append(home.ResBlock(width, self._emb, 0.0, width))
        return [*blocks, middle]

    def second_half(self) -> list[nn.Module]:
        """Up from the middle; each block is handed what the first half made at its level."""
        config, home = self._config, self._home
        widths = self._widths()
        skips = [config.channels]
        for level, out in enumerate(widths):
            skips += [out] * (_RES_BLOCKS + (level < len(widths) - 1))
        blocks, width = [], widths[-1]
        for level, (out, depth) in reversed([*enumerate(zip(widths, config.depths, strict=True))]):
            for number in range(_RES_BLOCKS + 1):
                blocks.append(self._block(width + skips.pop(), out, depth))
                width = out
                if level and number == _RES_BLOCKS:
                    blocks[-1].append(home.Upsample(width, True))
        return blocks

    def _widths(self) -> list[int]:
        return [multiple * self._config.channels for multiple in self._config.multiples]

    def _block(self, width: int, out: int, depth: int) -> Any:
        config, home = self._config, self._home
        block = home.TimestepEmbedSequential(home.ResBlock(width, self._emb, 0.0, out))
        if depth:
            heads = config.heads if config.heads > 0 else out // 64
            transformer = home.SpatialTransformer(
                out,
                heads,
                out // heads,
                depth=depth,
                context_dim=config.context,
                use_linear=config.is_linear,
            )
            block.append(transformer)
        return block


_SD1_DIFFUSERS: dict[str, Any] = {"cross_attention_dim": 768}
_SDXL_DIFFUSERS: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),  # heads, in spite of the name
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@functools.cache
def diffusers_unet(name: str) -> nn.Module:
    """diffusers' UNet of "SD1" or "SDXL"."""
    with torch.device("meta"):
        settings = {"SD1": _SD1_DIFFUSERS, "SDXL": _SDXL_DIFFUSERS}[name]
        return diffusers.UNet2DConditionModel(**settings)  # type: ignore[no-any-return]


@functools.cache
def diffusers_controlnet(name: str) -> nn.Module:
    """diffusers' control model for that UNet."""
    with torch.device("meta"):
        return diffusers.ControlNetModel.from_unet(  # type: ignore[no-any-return]
            diffusers_unet(name), load_weights_from_unet=False
        )


class _Recorder:
    """A choice that runs direct code, and notes which structures come that would be compiled."""

    def __init__(self) -> None:
        self.structures: set[Structure] = set()

    def run(
        self,
        block: Block,
        x: Tensor,
        besides: Any,
        weights: Sequence[Any],
        rules: Rules,
        live: Callable[[], Tensor] | None,
        *,
        is_forced: bool,
        may_prove: bool,
    ) -> tuple[Tensor, str]:
        """The block's output, or of a transformer block, whose context is not here, its input."""
        inputs = normalized(x, besides, weights)
        assert inputs is not None
        if block.kind.is_compiled:
            self.structures.add(structure_of(block.name, block.spec, inputs))
        if block.name == "transformer block":
            return x, DIRECT
        return compute(block.kind, x, besides, weights, block.spec, rules), DIRECT


@functools.cache
def structures(model: nn.Module) -> frozenset[Structure]:
    """The structures of a model's blocks that would be compiled, as the steps of its units ask for them."""
    recorder = _Recorder()
    call = ModelCall(AS_IT_COMES, None, (), "meta", None, choice=recorder)  # type: ignore[arg-type]
    units = {entry.path: entry for entry in ENTRIES if isinstance(entry, Unit)}
    for module in model.modules():
        unit = units.get(class_name(type(module)))
        if unit is not None and unit.applies(module):
            _call(unit, module, call)
    return frozenset(recorder.structures)


def _call(unit: Unit, module: nn.Module, call: ModelCall) -> None:
    steps, slots = choose(unit.candidates(module, lambda method: False))
    weights = LiveWeights(slots).read()
    channels = weights[0].shape[0 if weights[0].dim() == 1 else 1]  # of a norm, or of what is multiplied
    x = torch.empty((1, channels) if weights[0].dim() == 2 else (1, channels, 8, 8), device="meta")
    for step in steps:
        assert not step.reasons(None)
        x = step.run(x, None, None, call, weights)
