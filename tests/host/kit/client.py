"""Client for the webui API: generate images and compare them.

Needs numpy and Pillow, which the webui's venv has.
"""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

DEFAULTS: dict[str, Any] = {
    "prompt": "a photo of a cat",
    "negative_prompt": "blurry",
    "seed": 1,
    "steps": 4,
    "width": 128,
    "height": 128,
    "cfg_scale": 7,
    "sampler_name": "Euler",
    "scheduler": "Automatic",
}


class ApiError(RuntimeError):
    """The webui refused a request, with its answer as the text, or did not answer at all (status 0)."""

    def __init__(self, text: str, status: int = 0):
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Result:
    """Images of one request, the webui's own record of it, and how long it took."""

    images: list[Image.Image]
    info: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Difference:
    """How far two images are apart, in steps of an 8-bit channel."""

    mean: float
    max: float


class Client:
    """A running webui with the API on; ``auth`` is "user:password" where it asks for that."""

    def __init__(self, base_url: str = "http://127.0.0.1:7861", *, auth: str = "", timeout_s: float = 900):
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self.headers = {"Content-Type": "application/json"}
        if auth:
            self.headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()

    def call(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """GET ``path``, or POST ``body`` to it, and decode the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data, self.headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:2000]
            raise ApiError(f"{path}: {error.code} {text}", error.code) from None
        except (OSError, json.JSONDecodeError) as error:
            raise ApiError(f"{self.base_url}{path}: {error}") from None

    def options(self, **changes: Any) -> dict[str, Any]:
        """Change settings, if any are given, and return all of them."""
        if changes:
            self.call("/sdapi/v1/options", changes)
        settings: dict[str, Any] = self.call("/sdapi/v1/options")
        return settings

    def generate(self, fields: dict[str, Any]) -> Result:
        """Generate images; ``fields`` are those of the API, ``DEFAULTS`` fill the rest.

        With ``init_images`` among the fields this is img2img, else txt2img.
        """
        kind = "img2img" if "init_images" in fields else "txt2img"
        start = time.perf_counter()
        answer = self.call(f"/sdapi/v1/{kind}", DEFAULTS | fields)
        seconds = time.perf_counter() - start
        return Result([decode(image) for image in answer["images"]], json.loads(answer["info"]), seconds)

    def run_code(self, code: str) -> str:
        """Run Python code inside the server and return what it printed (needs the host-probe extension)."""
        return str(self.call("/host/exec", {"code": code})["out"])


def controlnet_unit(image: Image.Image, model: str, **fields: Any) -> dict[str, Any]:
    """One unit of sd-webui-controlnet: ``image`` straight into ``model``, no preprocessor."""
    unit = {
        "enabled": True,
        "module": "none",
        "model": model,
        "image": encode(image),
        "weight": 1.0,
        "resize_mode": "Just Resize",
        "control_mode": "Balanced",
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "pixel_perfect": False,
    }
    return unit | fields


def diff(first: Image.Image, second: Image.Image) -> Difference:
    """Compare two images; images of different sizes are as far apart as can be."""
    if first.size != second.size:
        return Difference(255.0, 255.0)
    error = np.abs(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))
    return Difference(float(error.mean()), float(error.max()))


def encode(image: Image.Image) -> str:
    """PNG in base64, as the API takes it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode(text: str) -> Image.Image:
    """RGB image from base64."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def outline(width: int, height: int) -> Image.Image:
    """White outlines on black, a hint for ControlNet that looks different when turned."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 5, height // 5, width * 4 // 5, height * 4 // 5), outline="white", width=3)
    draw.line((0, 0, width, height), fill="white", width=2)
    return image


def scene(width: int, height: int) -> Image.Image:
    """Coloured gradients with an outline, as the input of img2img."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    image = Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill="yellow")
    return image


def left_half(width: int, height: int) -> Image.Image:
    """White left half on black, a mask for inpainting."""
    image = Image.new("L", (width, height))
    image.paste(255, (0, 0, width // 2, height))
    return image
