"""What the webui draws, written down: a Picture for each generation."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from lib_accel.pictures import Picture, StepClock
from lib_accel.report import Generation


class Journal:
    """Follows the generation that runs."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self._began = 0.0

    def begin(self) -> None:
        """A generation begins."""
        self._clock.reset()
        self._began = time.perf_counter()

    def end(self, request: Any, done: Generation, *, is_accelerated: bool) -> Picture:
        """What the generation was that ends now."""
        return Picture(
            width=int(request.width),
            height=int(request.height),
            batch_size=int(request.batch_size),
            steps=int(request.steps),
            networks=len(list(merged_networks())),
            control_models=done.control_models,
            fast=done.fast,
            total=done.total,
            fuse_s=done.fuse_s,
            seconds=time.perf_counter() - self._began,
            step_ms=self._clock.step_ms(),
            is_accelerated=is_accelerated,
            ended=time.strftime("%H:%M:%S"),
            model=str(getattr(request, "sd_model_name", None) or ""),
            how=_how(request),
        )


def _how(request: Any) -> str:
    sampler = str(getattr(request, "sampler_name", None) or "")
    source = " from a picture" * bool(getattr(request, "init_images", None))
    return sampler + source + ", hires" * bool(getattr(request, "enable_hr", False))


def merged_networks() -> Iterable[tuple[str, float, float]]:
    """Name, strength in the UNet and in the text encoders of what the latest prompt named (networks.py)."""
    networks = sys.modules.get("networks")
    for network in list(getattr(networks, "loaded_networks", ())):
        yield str(network.name), float(network.unet_multiplier), float(network.te_multiplier)


def control_units(request: Any) -> int:
    """How many units of sd-webui-controlnet take part in a request (scripts/controlnet.py)."""
    scripts = getattr(getattr(request, "scripts", None), "alwayson_scripts", ())
    units = (
        getattr(script, "enabled_units", ())
        for script in scripts
        if type(script).__module__ == "controlnet.py"
    )
    return sum(len(each) for each in units)
