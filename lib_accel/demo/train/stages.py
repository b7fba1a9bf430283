"""The stages in order, each begun where the last run stopped, and the files that come of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_accel.demo.train import adapters, autoencoder, control, denoiser
from lib_accel.demo.train.loop import Plan
from lib_accel.demo.train.material import Material, encode
from lib_accel.demo.train.models import new_controlnet, new_text_encoder, new_unet, new_vae
from lib_accel.demo.train.scene import Scene, draw_lots

_PICTURES = 12000  # for UNet and ControlNet
_PAIR_SHARE = 0.45  # of scenes: which colour goes with which shape is the hardest to learn
_SEEDS = {"unet": 11, "outline": 12, "zorb": 13}


@dataclass(frozen=True)
class Workshop:
    """A folder where training goes on from run to run.

    `share` shortens every stage, for a try; such a model draws nothing. `deadline` is in seconds of
    time.monotonic: the methods raise OutOfTime there, with everything saved.
    """

    work: Path
    deadline: float
    device: str = "cpu"
    share: float = 1.0

    def vae(self) -> Any:
        """The trained AutoencoderKL, its decoder trained twice."""
        state = self._kept(
            "decoder",
            lambda: autoencoder.train_decoder(
                self._first_vae(), self.work, self.deadline, plan=self._plan(autoencoder.DECODER_PLAN)
            ).state_dict(),
        )
        return _filled(new_vae(0), state, self.device)

    def _first_vae(self) -> Any:
        state = self._kept(
            "vae",
            lambda: autoencoder.train_vae(
                self.work, self.deadline, device=self.device, plan=self._plan(autoencoder.PLAN)
            ).state_dict(),
        )
        return _filled(new_vae(0), state, self.device)

    def denoiser(self) -> dict[str, Any]:
        """The trained "unet" and "text_encoder"."""
        state = self._kept("unet", self._train_denoiser)
        parts = {"unet": new_unet(0), "text_encoder": new_text_encoder(0)}
        return {name: _filled(model, _under(name, state), self.device) for name, model in parts.items()}

    def lora(self, name: str) -> dict[str, Tensor]:
        """The LoRA "outline" or "zorb" in kohya's spelling."""
        recipe = adapters.RECIPES[name]
        recipe = replace(recipe, plan=self._plan(recipe.plan))

        def make() -> dict[str, Tensor]:
            count = max(64, round(recipe.pictures * self.share))
            material = encode(
                self.vae(),
                count,
                recipe.draw_scene,
                style=recipe.style,
                line=recipe.line,
                seed=_SEEDS[name],
                work=self.work,
            )
            return adapters.train_lora(recipe, self.denoiser(), material, self.work, self.deadline)

        return self._kept(f"lora-{name}", make)

    def controlnet(self) -> Any:
        """The trained ControlNetModel."""
        state = self._kept(
            "controlnet",
            lambda: control.train_controlnet(
                self.denoiser(), self._material(), self.work, self.deadline, self._plan(control.PLAN)
            ).state_dict(),
        )
        return _filled(new_controlnet(new_unet(0)), state, self.device)

    def _train_denoiser(self) -> dict[str, Tensor]:
        models = denoiser.train_denoiser(
            self._material(),
            self.work,
            self.deadline,
            device=self.device,
            plan=self._plan(denoiser.PLAN),
        )
        parts = zip(("unet", "text_encoder"), models, strict=True)
        return {f"{name}.{key}": value for name, model in parts for key, value in model.state_dict().items()}

    def _material(self) -> Material:
        def draw_scene(lot: random.Random) -> Scene:
            return draw_lots(lot, pair_share=_PAIR_SHARE)

        count = max(64, round(_PICTURES * self.share))
        return encode(self.vae(), count, draw_scene, style="filled", seed=_SEEDS["unet"], work=self.work)

    def _plan(self, plan: Plan) -> Plan:
        return replace(plan, steps=max(2, round(plan.steps * self.share)))

    def _kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `make` gives, from a file if it has been made before."""
        file = self.work / f"{name}.safetensors"
        if not file.is_file():
            self.work.mkdir(parents=True, exist_ok=True)
            state = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in make().items()}
            save_file(state, file)
        return load_file(file)


def train_all(workshop: Workshop) -> None:
    """All stages, each from what the one before has made; what is there already costs nothing."""
    workshop.vae()
    workshop.denoiser()
    for name in adapters.RECIPES:
        workshop.lora(name)
    workshop.controlnet()


def open_workshop(work: Path, minutes: float, device: str, share: float) -> Workshop:
    """A workshop for the next `minutes`."""
    return Workshop(work, time.monotonic() + 60 * minutes, device, share)


def _under(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    head = f"{name}."
    return {key.removeprefix(head): tensor for key, tensor in state.items() if key.startswith(head)}


def _filled(model: Any, state: dict[str, Tensor], device: str) -> Any:
    model.load_state_dict(state)
    model = model.to(device)
    return model.eval().requires_grad_(False)
