"""Small diffusers and transformers models without a zero in any weight, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

CONTEXT_WIDTH = 24  # SD1's stands for 768
OTHER_CONTEXT_WIDTH = 40  # SDXL's
TOKENS = 6

_ATTENTION, _PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def sd1_unet(**changes: Any) -> UNet2DConditionModel:
    """Convolutions around the attention, two residual blocks a level."""
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 2,
        "down_block_types": (_ATTENTION.format("Down"), _PLAIN.format("Down")),
        "up_block_types": (_PLAIN.format("Up"), _ATTENTION.format("Up")),
        "cross_attention_dim": CONTEXT_WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return with_weights(UNet2DConditionModel(**{**settings, **changes}))


def sd2_unet() -> UNet2DConditionModel:
    """Linear layers around the attention."""
    return sd1_unet(use_linear_projection=True, attention_head_dim=(2, 4))


def inpaint_unet() -> UNet2DConditionModel:
    """Nine channels in."""
    return sd1_unet(in_channels=9)


def sdxl_unet() -> UNet2DConditionModel:
    """No attention in the first level, several transformer blocks in the others, a vector of sizes."""
    return sd1_unet(
        block_out_channels=(16, 32, 32),
        down_block_types=(_PLAIN.format("Down"), _ATTENTION.format("Down"), _ATTENTION.format("Down")),
        up_block_types=(_ATTENTION.format("Up"), _ATTENTION.format("Up"), _PLAIN.format("Up")),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        cross_attention_dim=OTHER_CONTEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + 12,
    )


def text_encoder() -> CLIPTextModel:
    """The text encoder of SD1 and SD2, and the first of SDXL."""
    return with_weights(CLIPTextModel(_text_config()))


def second_text_encoder() -> CLIPTextModelWithProjection:
    """The second text encoder of SDXL."""
    return with_weights(CLIPTextModelWithProjection(_text_config()))


def with_weights(model: Any, seed: int = 0) -> Any:
    """The model with random numbers for weights; those of a norm are near 1."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            fan_in = max(weight[0].numel(), 1) if weight.ndim > 1 else 16
            weight.copy_(torch.randn(weight.shape, generator=numbers) / fan_in**0.5)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return model.eval().requires_grad_(False)


def bits(*models: nn.Module) -> list[Tensor]:
    """Copies of all weights."""
    return [weight.detach().clone() for model in models for weight in model.parameters()]


def same_bits(before: list[Tensor], *models: nn.Module) -> bool:
    """Whether all weights are as `bits` found them."""
    return all(torch.equal(old, new) for old, new in zip(before, bits(*models), strict=True))


@torch.no_grad()
def picture(unet: UNet2DConditionModel) -> Tensor:
    """Output of a UNet for one fixed input of batch 2."""
    numbers = torch.Generator().manual_seed(1)
    latents = torch.randn(2, unet.config.in_channels, 8, 8, generator=numbers)
    context = torch.randn(2, TOKENS, unet.config.cross_attention_dim, generator=numbers)
    added = {"text_embeds": torch.randn(2, 12, generator=numbers), "time_ids": torch.ones(2, 6)}
    step = torch.tensor(500)
    return unet(latents, step, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)[0]


@torch.no_grad()
def text_states(encoder: nn.Module) -> Tensor:
    """All that a text encoder says about one fixed prompt, in one row."""
    tokens = torch.arange(TOKENS)[None] + 1
    said = encoder(tokens, output_hidden_states=True)
    return torch.cat([said[0].flatten(), *(state.flatten() for state in said.hidden_states)])


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=12,
        vocab_size=64,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=TOKENS,
    )
