"""Shapes of the suite as the tables of tiles know them: what is predicted for them, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lib_accel.bench.gpu.kernels_shapes import Shape
from lib_accel.kernels import launches
from lib_accel.kernels.gpus import Gpu
from lib_accel.kernels.order import FIRST, LAST, exact, key_of
from lib_accel.kernels.tabulate import tiles

_HALF = torch.float16
_IMAGES = ("group_norm", "group_norm_joined", "bias_residual")


def call_of(shape: Shape) -> launches.Shape | None:
    """The call of a kernel that tables have; None for a kernel that they have not."""
    batch, *sizes = shape.sizes
    if shape.kernel in _IMAGES:
        # Two images are normed as the one that they make.
        kernel = shape.kernel.removesuffix("_joined")
        channels, kind = sizes[0] + shape.right, LAST if shape.is_last else FIRST
        return launches.Shape(kernel, kind, _HALF, batch, math.prod(sizes[1:]), channels)
    if shape.kernel == "lora_fuse":
        return None
    width = sizes[1] // 2 if shape.kernel == "geglu" else sizes[1]
    return launches.Shape(shape.kernel, "", _HALF, batch, sizes[0], width)


def predicted_ms(shape: Shape, tile: Any, gpu: Gpu | None) -> float | None:
    """What the GPU's table predicts for a tile at that very shape; None where it does not."""
    call = call_of(shape)
    row = None if gpu is None or call is None else exact(gpu, call.case)
    us = None if row is None else row.us.get(key_of(tile))
    return None if us is None else us / 1000


def all_tiles(shape: Shape, gpu: Gpu | None) -> Sequence[Any]:
    """Those of a known GPU's kernel, be they within reach of the best or not; none of another GPU."""
    call = call_of(shape)
    return () if gpu is None or call is None else tiles(call, gpu.capability)
