"""What the demo works with: pipeline, LoRAs, ControlNet and hint, the embedded ones or the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from PIL import Image

from lib_accel.bench.networks import random_network
from lib_accel.demo.embedded import GUIDANCE, LORAS, embedded_controlnet, embedded_hint, embedded_pipeline
from lib_accel.demo.errors import refused
from lib_accel.demo.growth import COUNTS
from lib_accel.demo.limits import check_device, check_size
from lib_accel.demo.loading import load_controlnet, load_hint, load_pipeline
from lib_accel.demo.request import Request
from lib_accel.demo.stage import Lora

EMBEDDED = "the embedded model"
_SCALE = 0.8
_GREY = (127, 127, 127)


@dataclass(frozen=True)
class Scene:
    """All that is shown, loaded."""

    model: str  # its name, without a folder
    pipe: Any
    asked: dict[str, Any]  # arguments of the pipeline's call, but for the prompt
    loras: Sequence[Lora]  # those in the pictures
    many: Sequence[Lora]  # those whose number grows in the plot
    many_are: str  # what they are, for the plot's title
    controlnet: Any = None
    hint: Image.Image | None = None

    def controlled(self) -> tuple[Any, dict[str, Any]]:
        """A pipeline of the same modules with the ControlNet, and the arguments of its call."""
        pipe = diffusers.AutoPipelineForText2Image.from_pipe(self.pipe, controlnet=self.controlnet)
        pipe.set_progress_bar_config(disable=True)
        return pipe, self.asked | {"image": self.hint}


def scene_of(request: Request) -> Scene:
    """Loads what was asked for. Raises DemoError if it cannot be loaded or does not fit together."""
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if check_device(device).type == "cpu" else torch.float16
    if request.size is not None:
        check_size(*request.size)
    return _embedded(request, device, dtype) if request.model is None else _loaded(request, device, dtype)


def _embedded(request: Request, device: str, dtype: torch.dtype) -> Scene:
    pipe = embedded_pipeline(device, dtype)
    asked = asked_of(pipe, request) | {"guidance_scale": GUIDANCE}
    loras = [Lora(file.stem, str(file), scale) for file, scale in LORAS]
    return Scene(
        model=EMBEDDED,
        pipe=pipe,
        asked=asked,
        loras=loras,
        # So many at full strength leave no picture, and large numbers are slow.
        many=[replace(lora, scale=_SCALE / max(COUNTS)) for lora in loras],
        many_are="its two LoRAs, repeated",
        controlnet=embedded_controlnet(device, dtype),
        hint=embedded_hint(asked["width"], asked["height"]),
    )


def _loaded(request: Request, device: str, dtype: torch.dtype) -> Scene:
    assert request.model is not None
    pipe = load_pipeline(request.model, device, dtype)
    asked = asked_of(pipe, request)
    loras = [Lora(lora.path.name, str(lora.path), lora.scale) for lora in request.loras]
    scene = Scene(
        model=request.model.name,
        pipe=pipe,
        asked=asked,
        loras=loras,
        many=loras or _made_for(pipe),
        many_are=_repeated(len(loras)) if loras else "seeded LoRAs made for this model",
    )
    if request.controlnet is None or request.hint is None:
        return scene
    if _is_inpainting(pipe):
        got = f"one for {scene.model}, which is an inpainting model"
        raise refused("--controlnet", got=got, expected="a model that starts from text", do="leave it out")
    controlnet = load_controlnet(request.controlnet, device, dtype)
    _check_fit(scene, request.controlnet.name, controlnet)
    hint = load_hint(request.hint, (asked["width"], asked["height"]))
    return replace(scene, controlnet=controlnet, hint=hint)


def _made_for(pipe: Any) -> list[Lora]:
    numbers = range(1, 1 + max(COUNTS))
    return [Lora(f"LoRA {n}", random_network(pipe.unet, seed=n), _SCALE / max(COUNTS)) for n in numbers]


def _repeated(loras: int) -> str:
    return "the given LoRA, repeated" if loras == 1 else f"the {loras} given LoRAs, repeated"


def asked_of(pipe: Any, request: Request) -> dict[str, Any]:
    """Arguments of the pipeline's call, but for the prompt.

    A size that was not asked for is the one the model was made for.
    """
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    width, height = request.size or (own, own)
    asked = {"width": width, "height": height}
    if _is_inpainting(pipe):  # all of a grey picture is to be painted over
        whole = Image.new("L", (width, height), 255)
        asked |= {"image": Image.new("RGB", (width, height), _GREY), "mask_image": whole, "strength": 1.0}
    return asked


def _is_inpainting(pipe: Any) -> bool:
    return "Inpaint" in type(pipe).__name__


def _check_fit(scene: Scene, name: str, controlnet: Any) -> None:
    wanted, found = (model.config.cross_attention_dim for model in (scene.pipe.unet, controlnet))
    if wanted != found:
        raise refused(
            "--controlnet",
            got=f"{name}, made for prompts of width {found}",
            expected=f"{wanted}, as {scene.model} has",
            do="give one of the same family",
        )
