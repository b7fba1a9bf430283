"""What the later stages learn from: latents of drawn pictures, and their captions as tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lib_accel.demo.tokenizer import load_tokenizer
from lib_accel.demo.train.autoencoder import as_input
from lib_accel.demo.train.captions import caption
from lib_accel.demo.train.drawing import LINE, draw, edges
from lib_accel.demo.train.models import SCALING
from lib_accel.demo.train.scene import Scene

TOKENS = 77
_EMPTY_SHARE = 0.1  # captions left away, for classifier-free guidance
_FILLER_SHARE = 0.1  # captions with words that mean nothing
_FILLERS = (320, 40000)  # tokens that are words or their parts
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class Material:
    """Scenes; in their order latents (count, 4, 8, 8) of deviation 1 and edges (count, 64, 64)."""

    scenes: Sequence[Scene]
    latents: Tensor
    edges: Tensor

    def pick(self, lot: random.Random, count: int) -> tuple[list[Scene], Tensor, Tensor]:
        """`count` scenes by lot, their latents, and their hints (count, 3, 64, 64) in 0 to 1."""
        chosen = [lot.randrange(len(self.scenes)) for _ in range(count)]
        hints = self.edges[chosen][:, None].expand(-1, 3, -1, -1).float()
        return [self.scenes[number] for number in chosen], self.latents[chosen], hints


@torch.no_grad()
def encode(
    vae: Any,
    count: int,
    draw_scene: Callable[[random.Random], Scene],
    *,
    style: str,
    line: float = LINE,
    seed: int,
    work: Path,
) -> Material:
    """Draws `count` scenes by lot and encodes them; the latents are kept in `work` for the next run."""
    lot = random.Random(seed)
    scenes = [draw_scene(lot) for _ in range(count)]
    file = work / f"latents-{style}-{count}-{seed}.pt"
    if not file.is_file():
        latents, outlines = [], []
        for first in tqdm(range(0, count, _ENCODED_AT_ONCE), desc=f"encode {style}", mininterval=10):
            pictures = [draw(scene, style, line) for scene in scenes[first : first + _ENCODED_AT_ONCE]]
            batch = as_input(pictures).to(vae.device)
            latents.append(vae.encode(batch).latent_dist.mean.cpu() * SCALING)
            outlines += [torch.from_numpy(edges(picture)) for picture in pictures]
        torch.save({"latents": torch.cat(latents), "edges": torch.stack(outlines)}, file)
    kept = torch.load(file, weights_only=True)
    return Material(scenes, kept["latents"], kept["edges"])


class Reader:
    """Captions to tokens, as CLIP's tokenizer does it, a word at a time from memory."""

    def __init__(self) -> None:
        self._tokenizer = load_tokenizer()
        self._words: dict[str, list[int]] = {}

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(batch, 77) int64, from start to end mark, filled up with end marks."""
        return torch.tensor([self._framed(self._ids(text)) for text in texts])

    def for_training(
        self, scenes: Sequence[Scene], lot: random.Random, say: Callable[[Scene], str] | None = None
    ) -> Tensor:
        """Tokens of the scenes' captions; some by lot are empty, and some have words that mean nothing."""
        rows = []
        for scene in scenes:
            ids = list(self._ids(say(scene) if say else caption(scene, lot)))
            if lot.random() < _FILLER_SHARE:
                for _ in range(lot.randint(1, 3)):
                    ids.insert(lot.randint(0, len(ids)), lot.randrange(*_FILLERS))
            rows.append(self._framed([] if lot.random() < _EMPTY_SHARE else ids))
        return torch.tensor(rows)

    def _ids(self, text: str) -> list[int]:
        for word in text.split():
            if word not in self._words:
                self._words[word] = self._tokenizer(word, add_special_tokens=False).input_ids
        return [token for word in text.split() for token in self._words[word]]

    def _framed(self, ids: list[int]) -> list[int]:
        start, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        return [start, *ids, *[end] * (TOKENS - 1 - len(ids))]
