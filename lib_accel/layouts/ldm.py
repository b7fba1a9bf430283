"""The `ldm` package: UNets of SD1, SD2 and their inpainting models."""

from __future__ import annotations

from lib_accel.layouts import containers, vae
from lib_accel.layouts.compvis import family

FAMILY = family("ldm", unet_casts_input=True)
ENTRIES = (*containers.entries(FAMILY), *vae.entries("ldm"))
