"""Pipelines and ControlNets from one file, with configs read from its header."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import DDIMScheduler

from lib_accel.demo.architecture import Config, controlnet_config, diffusers_controlnet_config
from lib_accel.demo.attempt import PIPELINES, attempt
from lib_accel.demo.checkpoint import read_checkpoint
from lib_accel.demo.errors import refused
from lib_accel.demo.kinds import CONTROLNET, kind_of
from lib_accel.demo.tokenizer import END, EXCLAMATION, load_tokenizer
from lib_accel.demo.weight_file import WeightFile, read_weight_file


class _Family(NamedTuple):
    name: str  # of its pipelines, without their ending
    pads: tuple[str, ...]  # by tokenizer


_FAMILIES = {
    "SD1": _Family("StableDiffusion", (END,)),
    "SD2": _Family("StableDiffusion", (EXCLAMATION,)),
    "SDXL": _Family("StableDiffusionXL", (END, EXCLAMATION)),
}
_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}


def pipeline_from_file(path: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a checkpoint in the original layout, on the CPU.

    What an SD2 model predicts stands in no shape: the file's metadata decides, else one call of the UNet.
    Raises DemoError.
    """
    found = read_checkpoint(read_weight_file(path))
    family = _FAMILIES[found.family]
    name = f"{family.name}{'Inpaint' if found.is_inpainting else ''}Pipeline"
    parts = dict(zip(("tokenizer", "tokenizer_2"), map(load_tokenizer, family.pads), strict=False))
    parts["scheduler"] = DDIMScheduler(**found.noise, prediction_type=found.prediction or "epsilon")
    index = {"_class_name": name, **{part: _CLASSES[part] for part in (*found.configs, *parts)}}
    pipe = _from_single_file(
        getattr(diffusers, name), path, {".": index, **found.configs}, dtype, **PIPELINES[name], **parts
    )
    if found.prediction is None and predicts_v(pipe.unet):
        pipe.scheduler = DDIMScheduler(**found.noise, prediction_type="v_prediction")
    return pipe


def _from_single_file(
    kind: Any, path: Path, configs: Mapping[str, Config], dtype: torch.dtype, **settings: Any
) -> Any:
    settings |= {"torch_dtype": dtype, "local_files_only": True}
    with _configs_on_disk(configs) as folder:
        return attempt(path, lambda: kind.from_single_file(str(path), config=folder, **settings))


@contextlib.contextmanager
def _configs_on_disk(configs: Mapping[str, Config]) -> Iterator[str]:
    """A folder in diffusers' layout that has configs and no weights; "." is the pipeline itself."""
    with tempfile.TemporaryDirectory() as folder:
        for part, config in configs.items():
            home = Path(folder) / part
            home.mkdir(exist_ok=True)
            index = "model_index.json" if "_class_name" in config else "config.json"
            (home / index).write_text(json.dumps(config), "utf-8")
        yield folder


def predicts_v(unet: Any) -> bool:
    """Whether an SD2 UNet predicts v rather than the noise, found as the webui finds it: by one small call.

    Given nothing but noise, one that predicts noise returns its input, one that predicts v minus a picture.
    """
    like = {"device": unet.device, "dtype": unet.dtype}
    noise = torch.full((1, unet.config.in_channels, 8, 8), 0.5, **like)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, **like)
    with torch.no_grad():
        answer = unet(noise, 999, encoder_hidden_states=context).sample
    return bool((answer - noise).float().mean() < -1)


def controlnet_from_file(path: Path, dtype: torch.dtype) -> Any:
    """The ControlNetModel of a file in the original or in diffusers' layout, on the CPU. Raises DemoError."""
    file = read_weight_file(path)
    kind = kind_of(file)
    if kind is not CONTROLNET:
        raise refused(path, got=kind.what, expected="a ControlNet", do="give a ControlNet's weights")
    try:
        config = _controlnet_config(file)
    except (KeyError, IndexError, StopIteration) as error:
        raise refused(
            path, got=f"a ControlNet without {error}", expected="all of its weights", do="download it again"
        ) from None
    return _from_single_file(diffusers.ControlNetModel, path, {".": config}, dtype)


def _controlnet_config(file: WeightFile) -> Config:
    if file.has("controlnet_cond_embedding."):
        return diffusers_controlnet_config(file.shapes)
    return controlnet_config(file.under("control_model.") or file.shapes)
