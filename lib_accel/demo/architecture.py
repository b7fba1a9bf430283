"""What a model in the original layout is, as diffusers' configs: all sizes are read from the tensors' shapes.

A family is known by its text encoders, which differ in their names: SD1 has CLIP, SD2 has OpenCLIP, SDXL has
both. Their widths must then be the UNet's width of context: 768, 1024 and 2048 in the published models.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lib_accel.demo.weight_file import Shapes

Config = dict[str, Any]

SD1_HEADS = 8
HEAD_WIDTH = 64  # of SD2, SDXL and all of their text encoders
SIZE_WIDTH = 256  # of SDXL's embedding of each of six sizes
# The noise that all of these families were trained on, as settings of a diffusers scheduler.
NOISE: Config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

_OPEN_CLIP_H_WIDTH = 1024
_OPEN_CLIP_H_LAYERS = 23  # that SD2 uses; files have 24, or 23 if a trainer left the unused one out


class Level(NamedTuple):
    """One resolution of a UNet's first half."""

    channels: int
    layers: int
    depth: int  # transformer blocks in each attention, 0 without attention


def unet_config(shapes: Shapes) -> Config:
    """Config of a UNet2DConditionModel, from a UNet's shapes without prefix.

    Raises KeyError if something that every UNet has is missing.
    """
    levels = _original_levels(shapes)
    config = _walk_config(shapes, levels, _depth(shapes, "middle_block.1"), "middle_block.1")
    attends = [level.depth > 0 for level in reversed(levels)]
    config["up_block_types"] = ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in attends]
    config["out_channels"] = shapes["out.2.weight"][0]
    config["in_channels"] = shapes["input_blocks.0.0.weight"][1]
    return config | _vector_config(shapes, "label_emb.0.0.weight")


def controlnet_config(shapes: Shapes) -> Config:
    """Config of a ControlNetModel, from shapes in the original layout without prefix. Raises KeyError."""
    config = _walk_config(
        shapes, _original_levels(shapes), _depth(shapes, "middle_block.1"), "middle_block.1"
    )
    # 0 takes the hint in; then each level has a convolution that keeps the width and one that changes it.
    config["conditioning_embedding_out_channels"] = [
        shapes[f"input_hint_block.{number}.weight"][0] for number in (0, 4, 8, 12)
    ]
    config["in_channels"] = shapes["input_blocks.0.0.weight"][1]
    return config | _vector_config(shapes, "label_emb.0.0.weight")


def diffusers_controlnet_config(shapes: Shapes) -> Config:
    """Config of a ControlNetModel, from shapes in diffusers' own layout. Raises KeyError."""
    middle = "mid_block.attentions.0"
    config = _walk_config(shapes, _diffusers_levels(shapes), _depth(shapes, middle), middle)
    blocks = _count(shapes, "controlnet_cond_embedding.blocks")
    hint = ["conv_in", *(f"blocks.{number}" for number in range(1, blocks, 2))]
    config["conditioning_embedding_out_channels"] = [
        shapes[f"controlnet_cond_embedding.{name}.weight"][0] for name in hint
    ]
    config["in_channels"] = shapes["conv_in.weight"][1]
    return config | _vector_config(shapes, "add_embedding.linear_1.weight")


def _walk_config(shapes: Shapes, levels: list[Level], middle_depth: int, middle: str) -> Config:
    channels = [level.channels for level in levels]
    is_linear = len(shapes[f"{middle}.proj_in.weight"]) == 2
    return {
        "block_out_channels": channels,
        "layers_per_block": levels[0].layers,
        "down_block_types": ["CrossAttnDownBlock2D" if level.depth else "DownBlock2D" for level in levels],
        # Where a level has no attention the number goes unread, save the last: it holds for the middle too.
        "transformer_layers_per_block": [level.depth or middle_depth for level in levels],
        "cross_attention_dim": shapes[f"{middle}.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": is_linear,
        # Heads, in spite of the name. Their number is in no shape; it goes with the form of the projections.
        "attention_head_dim": [width // HEAD_WIDTH for width in channels] if is_linear else SD1_HEADS,
    }


def _vector_config(shapes: Shapes, name: str) -> Config:
    if name not in shapes:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": shapes[name][1],
    }


def _original_levels(shapes: Shapes) -> list[Level]:
    levels = []
    channels = layers = depth = 0
    for number in range(1, _count(shapes, "input_blocks")):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            levels.append(Level(channels, layers, depth))
            layers = 0
            continue
        channels = shapes[f"input_blocks.{number}.0.out_layers.3.weight"][0]
        layers, depth = layers + 1, _depth(shapes, f"input_blocks.{number}.1")
    return [*levels, Level(channels, layers, depth)]


def _diffusers_levels(shapes: Shapes) -> list[Level]:
    return [
        Level(
            shapes[f"{block}.resnets.0.conv1.weight"][0],
            _count(shapes, f"{block}.resnets"),
            _depth(shapes, f"{block}.attentions.0"),
        )
        for block in (f"down_blocks.{number}" for number in range(_count(shapes, "down_blocks")))
    ]


def _depth(shapes: Shapes, attention: str) -> int:
    return _count(shapes, f"{attention}.transformer_blocks")


def _count(shapes: Shapes, parent: str) -> int:
    """How many children with numbers from 0 `parent` has."""
    depth = parent.count(".") + 1
    found = {name.split(".")[depth] for name in shapes if name.startswith(f"{parent}.")}
    return next(number for number in range(len(found) + 1) if str(number) not in found)


def vae_config(shapes: Shapes) -> Config:
    """Config of an AutoencoderKL, from a VAE's shapes without prefix. Raises KeyError."""
    levels = range(_count(shapes, "decoder.up"))
    return {
        # The decoder has a block at each level; the encoder may only sample down.
        "block_out_channels": [shapes[f"decoder.up.{level}.block.0.conv1.weight"][0] for level in levels],
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "layers_per_block": _count(shapes, "decoder.up.0.block") - 1,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
    }


def clip_config(shapes: Shapes) -> Config:
    """Config of OpenAI's CLIP text model in transformers' layout, without prefix. Raises KeyError."""
    return _text_config(
        shapes["embeddings.token_embedding.weight"],
        layers=_count(shapes, "encoder.layers"),
        positions=shapes["embeddings.position_embedding.weight"][0],
        inner=shapes["encoder.layers.0.mlp.fc1.weight"][0],
    ) | {"hidden_act": "quick_gelu"}


def open_clip_config(shapes: Shapes, *, skip_last: bool) -> Config:
    """Config of an OpenCLIP text model, without prefix; SD2 leaves its last layer out. Raises KeyError."""
    width = shapes["token_embedding.weight"][1]
    layers = _count(shapes, "transformer.resblocks")
    if skip_last:
        layers = _OPEN_CLIP_H_LAYERS if width == _OPEN_CLIP_H_WIDTH else layers - 1
    return _text_config(
        shapes["token_embedding.weight"],
        layers=layers,
        positions=shapes["positional_embedding"][0],
        inner=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
    ) | {"hidden_act": "gelu", "projection_dim": shapes.get("text_projection", (width, width))[1]}


def _text_config(tokens: tuple[int, ...], *, layers: int, positions: int, inner: int) -> Config:
    vocabulary, width = tokens
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": positions,
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 1,
    }
