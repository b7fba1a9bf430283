"""Tiny checkpoints and ControlNets in the original layout, made of the classes that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from ldm.modules.diffusionmodules import model as ldm_vae
from ldm.modules.diffusionmodules import openaimodel as ldm
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.fakes.models import CHANNELS, randomized, tiny_sgm_unet, tiny_unet
from tests.fakes.text_encoders import open_clip_transformer

WIDTH = 64  # of a text encoder, of one head
XL_WIDTH = 128  # of SDXL's second; diffusers tells the two by their widths
VOCABULARY, TOKENS, LAYERS = 49408, 77, 3
SIZES = 6 * 256  # SDXL's sizes, embedded
VAE_SETTINGS: dict[str, Any] = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": (1, 1, 2, 2),  # four levels: a latent is eight pixels wide
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 16,
    "z_channels": 4,
}


class OpenClip(nn.Module):
    """A text encoder in OpenCLIP's layout, called as SD2 and SDXL call it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.empty(TOKENS, width))
        self.transformer = open_clip_transformer().Transformer(width, LAYERS, heads=width // 64)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, width))

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the last but one and the last layer give, (batch, tokens, width)."""
        x = (self.token_embedding(ids) + self.positional_embedding).permute(1, 0, 2)
        mask = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)
        found = []
        for block in self.transformer.resblocks:
            x = block(x, attn_mask=mask)
            found.append(x.permute(1, 0, 2))
        return found[-2], found[-1]

    def pooled(self, ids: Tensor) -> Tensor:
        """The state of each prompt's first end, projected."""
        last = self.ln_final(self.states(ids)[1])
        return last[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection


class Vae(nn.Module):
    """Encoder, decoder and the convolutions around the latents."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.encoder = ldm_vae.Encoder(**{**VAE_SETTINGS, **settings})
        self.decoder = ldm_vae.Decoder(**{**VAE_SETTINGS, **settings})
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)


class Original(NamedTuple):
    """The parts of a model, by their name in the file."""

    parts: Mapping[str, nn.Module]

    @property
    def unet(self) -> Any:
        return self.parts["model.diffusion_model."]

    @property
    def vae(self) -> Any:
        return self.parts["first_stage_model."]

    def text(self, number: int = 0) -> Any:
        return list(self.parts.values())[2 + number]

    def state(self) -> dict[str, Tensor]:
        """What a file of this model holds."""
        return {
            f"{prefix}{name}": value.contiguous()
            for prefix, part in self.parts.items()
            for name, value in part.state_dict().items()
        }


def sd1(**unet: Any) -> Original:
    """CLIP, eight heads, convolutions as projections."""
    settings = {"context_dim": WIDTH, "num_heads": 8, "attention_resolutions": (1,), **unet}
    return _original(tiny_unet(**settings), {"cond_stage_model.transformer.text_model.": _clip()})


def sd2(**unet: Any) -> Original:
    """OpenCLIP, heads of 64 channels, linear projections."""
    settings = {"num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True, **unet}
    return _original(tiny_unet(context_dim=WIDTH, **settings), {"cond_stage_model.model.": _open_clip(WIDTH)})


def sdxl() -> Original:
    """Both, transformers of two blocks, a vector of pooled text and sizes."""
    unet = tiny_sgm_unet(context_dim=WIDTH + XL_WIDTH, adm_in_channels=XL_WIDTH + SIZES)
    first, second = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
    return _original(unet, {first: _clip(), second: _open_clip(XL_WIDTH)})


def _original(unet: nn.Module, texts: dict[str, nn.Module]) -> Original:
    return Original({"model.diffusion_model.": unet, "first_stage_model.": randomized(Vae(), 13), **texts})


def _clip() -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        max_position_embeddings=TOKENS,
    )
    model = CLIPTextModel(config)
    return randomized(getattr(model, "text_model", model), 14)  # transformers 5 has no wrapper


def _open_clip(width: int) -> nn.Module:
    return randomized(OpenClip(width), 15)


_HINT = ((3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 96, 2), (96, 96, 1), (96, 256, 2))


class ControlNet(nn.Module):
    """A control model of the original layout: a UNet's first half, with a hint's eight convolutions."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.time_embed, self.input_blocks = unet.time_embed, unet.input_blocks
        self.middle_block = unet.middle_block
        widths = (CHANNELS, CHANNELS, CHANNELS, 2 * CHANNELS)
        self.zero_convs = nn.ModuleList(ldm.TimestepEmbedSequential(nn.Conv2d(w, w, 1)) for w in widths)
        self.middle_block_out = ldm.TimestepEmbedSequential(nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 1))
        hint = [
            layer
            for before, after, stride in _HINT
            for layer in (nn.Conv2d(before, after, 3, stride, padding=1), nn.SiLU())
        ]
        self.input_hint_block = ldm.TimestepEmbedSequential(*hint, nn.Conv2d(256, CHANNELS, 3, padding=1))

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:
        """What to add to each skip of the UNet, and last to its middle."""
        emb = self.time_embed(ldm.timestep_embedding(timesteps, CHANNELS, repeat_only=False))
        guided, outs = self.input_hint_block(hint, emb, context), []
        for number, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            x = block(x, emb, context)
            x = x + guided if number == 0 else x
            outs.append(zero_conv(x, emb, context))
        return [*outs, self.middle_block_out(self.middle_block(x, emb, context), emb, context)]


def controlnet() -> ControlNet:
    """A ControlNet for `sd1()`."""
    return randomized(ControlNet(sd1().unet), 16)


_FULL_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": 2,
    "attention_resolutions": (4, 2, 1),
    "channel_mult": (1, 2, 4, 4),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "use_checkpoint": False,
    "legacy": False,
}
_FULL_VAE = {"ch": 128, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2}
_FULL_CLIP = {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def full_size_sd1() -> dict[str, Tensor]:
    """What a half precision file of SD1.5's own sizes holds, 2 GB, with seeded weights."""
    with torch.device("meta"):
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, **_FULL_CLIP))
        parts = {
            "model.diffusion_model.": ldm.UNetModel(**_FULL_UNET),
            "first_stage_model.": Vae(**_FULL_VAE),
            "cond_stage_model.transformer.text_model.": getattr(clip, "text_model", clip),
        }
    generator = torch.Generator().manual_seed(21)
    return {
        f"{prefix}{name}": _drawn(parameter, generator).half()
        for prefix, part in parts.items()
        for name, parameter in part.named_parameters()
    }


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator)
    return 1 + 0.2 * noise if like.dim() == 1 else noise / like[0].numel() ** 0.5
