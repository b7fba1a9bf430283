"""The embedded model is loaded as it was asked for, and its hint is what its ControlNet knows."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from lib_accel.demo.embedded import LORAS, MODEL, embedded_controlnet, embedded_hint, embedded_pipeline
from lib_accel.demo.errors import DemoError
from lib_accel.demo.request import EMBEDDED_PROMPTS
from lib_accel.demo.tokenizer import FOLDER
from lib_accel.demo.train.scene import BACKGROUNDS, COLOURS, RADII, SHAPES, SUBJECT_WORD


def test_it_has_the_block_kinds_of_sd1() -> None:
    config = json.loads((MODEL / "unet" / "config.json").read_text("utf-8"))
    assert set(config["down_block_types"]) == {"CrossAttnDownBlock2D", "DownBlock2D"}
    assert set(config["up_block_types"]) == {"CrossAttnUpBlock2D", "UpBlock2D"}
    assert (config["layers_per_block"], config["attention_head_dim"]) == (2, 8)
    assert config["cross_attention_dim"] <= 64


def test_the_vocabulary_lies_in_the_repository_once() -> None:
    assert [file.parent for file in MODEL.parent.rglob("vocab.json")] == [FOLDER]


def test_diffusers_alone_loads_the_folder_with_the_vocabulary_beside_it() -> None:
    from lib_accel.demo.tokenizer import load_tokenizer

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(MODEL), tokenizer=load_tokenizer())
    assert pipe.tokenizer.model_max_length == 77


def test_the_pipeline_has_the_asked_dtype() -> None:
    pipe = embedded_pipeline("cpu", torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
    assert embedded_controlnet("cpu", torch.bfloat16).dtype == torch.bfloat16


def test_a_missing_device_is_refused() -> None:
    with pytest.raises(DemoError, match="device: got 'gpu'"):
        embedded_pipeline("gpu")


def test_prompts_are_made_of_words_that_the_model_knows() -> None:
    usual = {
        "a",
        "on",
        "in",
        "the",
        "middle",
        "background",
        *RADII,
        *COLOURS,
        *SHAPES,
        *BACKGROUNDS,
        SUBJECT_WORD,
    }
    assert {word for prompt in EMBEDDED_PROMPTS for word in prompt.split()} <= usual
    assert any(SUBJECT_WORD in prompt for prompt in EMBEDDED_PROMPTS)


def test_the_loras_are_files() -> None:
    assert all(isinstance(file, Path) and file.is_file() for file, _ in LORAS)


@pytest.mark.parametrize("size", [(64, 64), (128, 64)])
def test_the_hint_is_white_lines_on_black(size: tuple[int, int]) -> None:
    hint = embedded_hint(*size)
    assert (hint.mode, hint.size) == ("RGB", size)
    assert set(np.unique(np.asarray(hint))) == {0, 255}
    assert 0.01 < np.asarray(hint).mean() / 255 < 0.2


def test_a_hint_of_an_impossible_size_is_refused() -> None:
    with pytest.raises(DemoError, match="the nearest is 128x72"):
        embedded_hint(127, 70)
