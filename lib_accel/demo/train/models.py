"""The networks: SD1's block kinds, narrow, three levels deep. Names of all layers are as in SD1.5.

Widths are 64 because the original layout has 32 groups in each norm, and a group needs two channels or
more, or a channel's mean, which carries colour and time, is normed away. The vocabulary is CLIP's own, at a
width of 32 (3 MiB): any host's tokenizer fits, and a word that the model never met is a point that a LoRA
can learn.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lib_accel.demo.architecture import NOISE
from lib_accel.demo.train.scene import SIDE

LATENT_SIDE = SIDE // 8
SCALING = 0.18215  # SD1's, so that hosts which assume it are right

UNET = {
    "sample_size": LATENT_SIDE,
    "block_out_channels": (64, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,  # that many heads, as in SD1: diffusers calls them so
    "cross_attention_dim": 32,
}
VAE = {
    "sample_size": SIDE,
    "block_out_channels": (64, 64, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 0,  # the decoder has one more; the encoder only samples down before its middle
    "latent_channels": 4,
    "scaling_factor": SCALING,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 128,
    "projection_dim": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,  # one for 64 channels or fewer, as hosts conclude from the width
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
HINT = (16, 32, 64, 128)  # widths of the ControlNet's first layers; SD1's (16, 32, 96, 256) are too many here

_TOKEN_DEVIATION, _POSITION_DEVIATION = 0.1, 0.05


def new_vae(seed: int) -> Any:
    """An AutoencoderKL with weights by lot."""
    torch.manual_seed(seed)
    return AutoencoderKL(**VAE)


def new_unet(seed: int) -> Any:
    """A UNet2DConditionModel with weights by lot."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**UNET)


def new_text_encoder(seed: int) -> Any:
    """A CLIPTextModel with weights by lot; tokens far enough apart that an unused one is still a name."""
    torch.manual_seed(seed)
    model = CLIPTextModel(CLIPTextConfig(**TEXT))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("token_embedding.weight"):
                parameter.normal_(0, _TOKEN_DEVIATION)
            elif name.endswith("position_embedding.weight"):
                parameter.normal_(0, _POSITION_DEVIATION)
    return model


def new_controlnet(unet: Any) -> Any:
    """A ControlNetModel that begins as the UNet's encoder and adds nothing yet."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT)


def new_scheduler() -> Any:
    """The noise schedule of SD1, for training and for DDIM."""
    return DDIMScheduler(**NOISE, prediction_type="epsilon")
