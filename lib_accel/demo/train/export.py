"""Writes what was trained where the demo looks for it: pipeline, LoRAs and ControlNet, in float16."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from lib_accel.demo.embedded import DATA
from lib_accel.demo.tokenizer import load_tokenizer
from lib_accel.demo.train.adapters import RECIPES, save_lora
from lib_accel.demo.train.models import new_scheduler
from lib_accel.demo.train.stages import Workshop

TEXT_HEAD = "text_model."


def export_all(workshop: Workshop, data: Path = DATA) -> list[Path]:
    """Writes model/, loras/ and controlnet/ under `data` and returns the files of weights."""
    write_pipeline({**workshop.denoiser(), "vae": workshop.vae()}, data / "model")
    for name, recipe in RECIPES.items():
        (data / "loras").mkdir(parents=True, exist_ok=True)
        save_lora(data / "loras" / f"{name}.safetensors", workshop.lora(name), recipe)
    controlnet = workshop.controlnet().to(torch.float16, memory_format=torch.contiguous_format)
    controlnet.save_pretrained(data / "controlnet")
    _forget_paths(data / "controlnet")
    return sorted(data.rglob("*.safetensors"))


def write_pipeline(parts: Mapping[str, Any], folder: Path) -> None:
    """Writes "unet", "vae" and "text_encoder", which become float16, as a pipeline's folder.

    Its tokenizer is the one that lies beside the code; `load_pipeline` knows.
    """
    pipe = StableDiffusionPipeline(
        **parts,
        tokenizer=load_tokenizer(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    _contiguous(pipe).to(torch.float16).save_pretrained(folder)
    # One copy is enough, and transformers 5 writes a form that not all versions read.
    shutil.rmtree(folder / "tokenizer")
    _name_as_before(folder / "text_encoder" / "model.safetensors")
    _forget_paths(folder)


def _contiguous(pipe: Any) -> Any:
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.contiguous_format)
    return pipe


def _name_as_before(file: Path) -> None:
    """transformers 5 saves without the head that version 4 needs and itself still reads."""
    state = {TEXT_HEAD + key.removeprefix(TEXT_HEAD): tensor for key, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def _forget_paths(folder: Path) -> None:
    """diffusers notes in each config where it was loaded from."""
    for file in (*folder.glob("*.json"), *folder.glob("*/config.json")):
        config = json.loads(file.read_text("utf-8"))
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
