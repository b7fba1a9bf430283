"""Pipelines, ControlNets and hints from the user's paths; nothing is ever fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import nn

from lib_accel.demo.attempt import PIPELINES, attempt, demand_complete, silent
from lib_accel.demo.errors import refused
from lib_accel.demo.limits import check_device, check_size
from lib_accel.demo.single_file import controlnet_from_file, pipeline_from_file
from lib_accel.demo.tokenizer import load_tokenizer
from lib_accel.requirements import installed_version, is_older


def load_pipeline(path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline, or its inpainting kind for nine input channels.

    `path` is a folder in diffusers' layout, or one file in the original layout (SD1, SD2, SDXL). A file gets
    the DDIM scheduler: as many model calls as steps. Raises DemoError; what a file's header can tell is told
    before any weight is read.
    """
    path, place = _existing(path), check_device(device)
    pipe = _from_folder(path, dtype) if path.is_dir() else pipeline_from_file(path, dtype)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            demand_complete(path, name, part)
    with silent():
        return quieted(pipe.to(place))


def load_controlnet(path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A ControlNetModel from diffusers' folder, or from one file in the original or in diffusers' layout.

    Raises DemoError.
    """
    path, place = _existing(path), check_device(device)
    if path.is_dir():
        _demand_class(path, "config.json", ("ControlNetModel",), "a ControlNet's folder")
        model = _from_pretrained(diffusers.ControlNetModel, path, dtype)
    else:
        model = controlnet_from_file(path, dtype)
    demand_complete(path, "the ControlNet", model)
    return model.to(place).eval().requires_grad_(False)


def load_hint(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """An image file as a ControlNet's hint: RGB, stretched to (width, height). Raises DemoError."""
    path = _existing(path)
    check_size(*size)
    try:
        with Image.open(path) as picture:
            hint: Image.Image = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            return hint
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise refused(
            path, got="no image that Pillow can read", expected="PNG or JPEG", do="give another"
        ) from None


def check_fit(controlnet: Any, pipe: Any) -> None:
    """Raises DemoError if the ControlNet was not made for the pipeline's architecture."""
    for value, what in (("cross_attention_dim", "context of width"), ("block_out_channels", "channels")):
        got, expected = controlnet.config[value], pipe.unet.config[value]
        if _plain(got) != _plain(expected):
            raise refused(
                "ControlNet",
                got=f"one for {what} {got}",
                expected=f"{expected} as the model has",
                do="give one of the model's family (contexts of SD1: 768, SD2: 1024, SDXL: 2048)",
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def quieted(pipe: Any) -> Any:
    """The pipeline, without progress bars."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise refused(path, got="nothing of that name", expected="a file or folder", do="check the path")
    if not os.access(path, os.R_OK):
        raise refused(path, got="no leave to read it", expected="a readable path", do="check its permissions")
    return path


def _from_folder(path: Path, dtype: torch.dtype) -> Any:
    name = _demand_class(path, "model_index.json", tuple(PIPELINES), "a pipeline's folder")
    # The embedded model has none in its folder: all of SD1 have the one that lies beside the code.
    tokenizer = {} if (path / "tokenizer").is_dir() else {"tokenizer": load_tokenizer()}
    return _from_pretrained(getattr(diffusers, name), path, dtype, **PIPELINES[name], **tokenizer)


def _demand_class(path: Path, index: str, expected: tuple[str, ...], what: str) -> str:
    """The class that a folder's index names. Raises DemoError unless it is an expected one."""
    named = _class_in(path / index)
    if named in expected:
        return named
    other = named or next(filter(None, map(_class_in, path.glob("*.json"))), f"a folder without {index}")
    raise refused(path, got=other, expected=f"{what} ({', '.join(expected)})", do="give its path")


def _class_in(index: Path) -> str | None:
    try:
        named = json.loads(index.read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return named if isinstance(named, str) else None


def _from_pretrained(kind: Any, path: Path, dtype: torch.dtype, **settings: Any) -> Any:
    # Older ones ignore the new name, newer ones warn about the old one.
    name = "torch_dtype" if is_older(installed_version("diffusers") or "0", "0.41") else "dtype"
    settings |= {name: dtype, "local_files_only": True, **_variant(path)}
    return attempt(path, lambda: kind.from_pretrained(str(path), **settings))


def _variant(path: Path) -> Mapping[str, str]:
    """What asks for half precision weights where a folder has no others."""
    names = [file.name for file in path.rglob("*.safetensors")]
    is_half = any(".fp16." in name for name in names) and "diffusion_pytorch_model.safetensors" not in names
    return {"variant": "fp16"} if is_half else {}
