"""From diffusers' folder to one file in the original layout with its yaml, as a webui loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_accel.demo.errors import DemoError
from lib_accel.demo.tokenizer import FOLDER as TOKENIZER
from lib_accel.demo.train import original

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def convert(model: Path, out: Path, name: str = "accel-demo") -> Path:
    """Writes <name>.safetensors, <name>.yaml and the folder <name>-clip under `out`; returns the first.

    Put file and yaml into the webui's models/Stable-diffusion. The yaml names the folder, which has the text
    encoder's config and tokenizer, by its path: leave it where it is. Raises DemoError if `model` is no
    pipeline's folder.
    """
    if not (model / "model_index.json").is_file():
        raise DemoError(f"{model}: got no model_index.json, expected a pipeline's folder; give its path")
    out.mkdir(parents=True, exist_ok=True)
    clip = _write_clip(model, out / f"{name}-clip")
    configs = {
        part: json.loads((model / part / "config.json").read_text("utf-8")) for part in ("unet", "vae")
    }
    state = _original_state(model, levels=len(configs["vae"]["block_out_channels"]))
    file = out / f"{name}.safetensors"
    save_file(state, file, metadata={"format": "pt", "modelspec.architecture": "stable-diffusion-v1"})
    settings = original.settings(configs["unet"], configs["vae"], clip.resolve().as_posix())
    # JSON is YAML, and needs no further package.
    file.with_suffix(".yaml").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    return file


def _original_state(model: Path, levels: int) -> dict[str, Tensor]:
    unet = original.original_unet(load_file(model / "unet" / _WEIGHTS))
    vae = original.original_vae(load_file(model / "vae" / _WEIGHTS), levels)
    text = original.original_text(load_file(model / "text_encoder" / "model.safetensors"))
    heads = ((original.UNET_HEAD, unet), (original.VAE_HEAD, vae), (original.TEXT_HEAD, text))
    return {head + key: tensor.contiguous() for head, state in heads for key, tensor in state.items()}


def _write_clip(model: Path, folder: Path) -> Path:
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    shutil.copyfile(model / "text_encoder" / "config.json", folder / "config.json")
    return folder
