"""The model in the repository: a small Stable Diffusion of our own, with LoRAs, a ControlNet and a hint.

`lib_accel/demo/train` made it; data/MODEL_CARD.md says what it knows and how well it does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lib_accel.demo.limits import check_size
from lib_accel.demo.loading import load_controlnet, load_pipeline
from lib_accel.demo.train.drawing import draw, hint
from lib_accel.demo.train.scene import single

DATA = Path(__file__).resolve().parent / "data"
MODEL, CONTROLNET = DATA / "model", DATA / "controlnet"
# Files and scales: they were trained apart, and at full strength the style is too much for the subject.
LORAS = ((DATA / "loras" / "zorb.safetensors", 1.0), (DATA / "loras" / "outline.safetensors", 0.8))
GUIDANCE = 4.0  # at which it is judged


def embedded_pipeline(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A StableDiffusionPipeline, without safety checker and progress bars.

    Raises DemoError for a device that is not there.
    """
    return load_pipeline(MODEL, device, dtype)


def embedded_controlnet(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Its ControlNetModel: edges to a picture with these edges. Raises DemoError for a device."""
    return load_controlnet(CONTROLNET, device, dtype)


def embedded_hint(width: int, height: int) -> Image.Image:
    """The edges of a triangle at the left, white on black, RGB, sizes in pixels.

    Raises DemoError for a size that no picture can have.
    """
    check_size(width, height)
    edges = hint(draw(single("red", "triangle", "medium", "left", "white")))
    return Image.fromarray(edges).resize((width, height), Image.Resampling.NEAREST)
