"""The tokenizer of CLIP, from the vocabulary that lies beside the code.

data/clip_tokenizer is the tokenizer of openai/clip-vit-large-patch14 (OpenAI, MIT licence), which SD1, SD2
and both encoders of SDXL share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

FOLDER = Path(__file__).resolve().parent / "data" / "clip_tokenizer"
END = "<|endoftext|>"
EXCLAMATION = "!"  # has token 0: OpenCLIP fills up with zeros


def load_tokenizer(pad_token: str = END) -> Any:
    """A transformers CLIPTokenizer, made without network.

    `pad_token` fills a prompt up to 77 tokens: END for SD1 and SDXL's first encoder, EXCLAMATION for SD2 and
    SDXL's second.
    """
    return CLIPTokenizer.from_pretrained(str(FOLDER), pad_token=pad_token, local_files_only=True)
