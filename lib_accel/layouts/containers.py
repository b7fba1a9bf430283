"""What we stand in front of in a package of the CompVis code line, but for its VAE (vae.py)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lib_accel.errors import LayoutError
from lib_accel.layouts import compvis
from lib_accel.layouts.compvis import Family
from lib_accel.layouts.entries import Entry, Inputs, UNet, Unit


def entries(names: Family) -> tuple[Entry, ...]:
    """The containers of a UNet's or control model's blocks, and the UNet itself."""
    return (
        Unit(names.container, lambda module, trust: compvis.candidates(module, names, trust), _inputs),
        UNet(names.unet, names),
    )


def _inputs(x: Tensor, emb: Any, context: Any = None, *args: Any, **kwargs: Any) -> Inputs:
    if args or kwargs:
        raise LayoutError(f"called with {len(args) + len(kwargs)} arguments that only video models take")
    return Inputs(x, emb, context)
