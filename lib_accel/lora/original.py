"""Names that a diffusers UNet's layers have in the original Stable Diffusion; kohya uses them for SDXL."""

from __future__ import annotations

from collections.abc import Collection, Iterator

_TOP_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_MIDDLE = {
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET_LAYERS = {
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_DOWNSAMPLER_LAYERS = {"conv": "op"}


def original_names(paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs (original path, path) of those `paths` of a diffusers UNet's layers that the original has too."""
    blocks = {_block(path) for path in paths}
    renamed = dict(_MIDDLE) | dict(_down_blocks(blocks)) | dict(_up_blocks(blocks))
    for path in paths:
        block = _block(path)
        if path in _TOP_LAYERS:
            yield _TOP_LAYERS[path], path
        elif block in renamed:
            yield f"{renamed[block]}.{_inner_name(block, path.removeprefix(f'{block}.'))}", path


def _block(path: str) -> str:
    """The part of a layer's path that names its residual block, attention or sampler."""
    return ".".join(path.split(".")[: 3 if path.startswith("mid_block.") else 4])


def _inner_name(block: str, layer: str) -> str:
    if ".resnets." in block:
        return _RESNET_LAYERS.get(layer, layer)
    return _DOWNSAMPLER_LAYERS.get(layer, layer) if ".downsamplers." in block else layer


def _down_blocks(blocks: Collection[str]) -> Iterator[tuple[str, str]]:
    """A number for each residual block with its attention, and for each downsampler; conv_in has number 0."""
    number = 1
    for level in _numbers("down_blocks", blocks):
        for position in _numbers(f"down_blocks.{level}.resnets", blocks):
            yield f"down_blocks.{level}.resnets.{position}", f"input_blocks.{number}.0"
            yield f"down_blocks.{level}.attentions.{position}", f"input_blocks.{number}.1"
            number += 1
        if f"down_blocks.{level}.downsamplers.0" in blocks:
            yield f"down_blocks.{level}.downsamplers.0", f"input_blocks.{number}.0"
            number += 1


def _up_blocks(blocks: Collection[str]) -> Iterator[tuple[str, str]]:
    """A number for each residual block with its attention; an upsampler is the last part of one."""
    number = 0
    for level in _numbers("up_blocks", blocks):
        has_attention = f"up_blocks.{level}.attentions.0" in blocks
        for position in _numbers(f"up_blocks.{level}.resnets", blocks):
            yield f"up_blocks.{level}.resnets.{position}", f"output_blocks.{number}.0"
            yield f"up_blocks.{level}.attentions.{position}", f"output_blocks.{number}.1"
            number += 1
        yield f"up_blocks.{level}.upsamplers.0", f"output_blocks.{number - 1}.{2 if has_attention else 1}"


def _numbers(parent: str, blocks: Collection[str]) -> range:
    """0 and on, as far as `parent` has children with these numbers."""
    count = 0
    while any(f"{block}.".startswith(f"{parent}.{count}.") for block in blocks):
        count += 1
    return range(count)
