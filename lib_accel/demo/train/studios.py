"""The trained model in a stock pipeline and in an accelerated one, with its LoRAs and its ControlNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers

from lib_accel.demo.embedded import DATA
from lib_accel.demo.loading import load_controlnet, load_pipeline, quieted
from lib_accel.hosts.diffusers import accelerate


class StockStudio:
    """diffusers alone: LoRAs by its own loader."""

    def __init__(self, data: Path = DATA, device: str = "cpu") -> None:
        self._data = data
        self.pipe = load_pipeline(data / "model", device)

    def set_lora(self, name: str | None) -> None:
        """One LoRA as an adapter of peft, or none."""
        self.pipe.unload_lora_weights()
        if name is not None:
            self.pipe.load_lora_weights(str(self._data / "loras"), weight_name=f"{name}.safetensors")

    def with_controlnet(self) -> Any:
        """A pipeline of the same parts with the ControlNet."""
        controlnet = load_controlnet(self._data / "controlnet", str(self.pipe.device))
        return quieted(
            diffusers.StableDiffusionControlNetPipeline(
                **self.pipe.components, controlnet=controlnet, requires_safety_checker=False
            )
        )


class AcceleratedStudio(StockStudio):
    """The same with `lib_accel.accelerate`: LoRAs fused into the weights."""

    def __init__(self, data: Path = DATA, device: str = "cpu") -> None:
        super().__init__(data, device)
        self._handle = accelerate(self.pipe)

    def set_lora(self, name: str | None) -> None:
        """One LoRA, fused at full strength, or none."""
        file = self._data / "loras" / f"{name}.safetensors"
        self._handle.set_loras([] if name is None else [(file, 1.0, 1.0)])

    def with_controlnet(self) -> Any:
        """An accelerated pipeline of the same parts with the ControlNet; the one without is plain again."""
        self.close()
        pipe = super().with_controlnet()
        self._handle = accelerate(pipe)
        return pipe

    def close(self) -> None:
        """Leaves diffusers as it was."""
        self._handle.detach()
