"""Small text encoders: transformers' CLIP as installed and as it was, and OpenCLIP as the webui calls it."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.fakes.models import randomized, sgm_openaimodel

WIDTH, HEADS, LAYERS, TOKENS, VOCABULARY = 32, 4, 3, 13, 100
CLIP_HOME = "transformers.models.clip.modeling_clip"


def config(activation: str = "quick_gelu", attention: str = "sdpa") -> CLIPTextConfig:
    """What a CLIP text encoder of this size is made from."""
    made = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=TOKENS,
        hidden_act=activation,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )
    made._attn_implementation = attention
    return made


def tiny_clip(seed: int = 0, **options: str) -> Any:
    """A text encoder of the installed transformers."""
    return randomized(CLIPTextModel(config(**options)), seed)


def old_clip() -> ModuleType:
    """The module of transformers 4 (old_clip.py) under its own name, but not in sys.modules."""
    spec = importlib.util.spec_from_file_location(CLIP_HOME, Path(__file__).parent / "old_clip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_clip_transformer() -> ModuleType:
    """The stand-in for open_clip's `transformer`, imported under that name."""
    sgm_openaimodel()  # puts the stand-ins' folder on the path
    return importlib.import_module("open_clip.transformer")


class TinyOpenCLIP(nn.Module):
    """A text encoder as FrozenOpenCLIPEmbedder runs it: up to one of the last layers, with a causal mask."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = open_clip_transformer().Transformer(WIDTH, LAYERS, HEADS, **options)
        self.attn_mask = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)

    def forward(self, ids: Tensor, skipped: int = 0) -> Tensor:
        x = self.token_embedding(ids).permute(1, 0, 2)
        for block in self.transformer.resblocks[: LAYERS - skipped]:
            x = block(x, attn_mask=self.attn_mask)
        return x.permute(1, 0, 2)


def tiny_open_clip(seed: int = 0, **options: Any) -> Any:
    """A text encoder of the stand-in's layers."""
    return randomized(TinyOpenCLIP(**options), seed)


def prompts(batch: int = 2, seed: int = 1) -> Tensor:
    """Random token ids, each row with its end."""
    ids = torch.randint(VOCABULARY - 2, (batch, TOKENS), generator=torch.Generator().manual_seed(seed))
    ids[:, -1] = VOCABULARY - 1
    return ids


def states(model: nn.Module, ids: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The states before and after each of a CLIP's layers, without gradients."""
    with torch.no_grad():
        found: tuple[Tensor, ...] = model(ids, output_hidden_states=True, **options).hidden_states
    return found
