"""The `sgm` package: UNets of SDXL and its refiner, and the blocks of sd-webui-controlnet's models."""

from __future__ import annotations

from lib_accel.layouts import containers, vae
from lib_accel.layouts.compvis import family

FAMILY = family("sgm", unet_casts_input=False)
ENTRIES = (*containers.entries(FAMILY), *vae.entries("sgm"))
