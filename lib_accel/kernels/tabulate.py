"""Writes the predicted tables of GPUs: each kernel's tiles at the shapes of SD1.5, SDXL and the decoder.

Registers and shared memory are those that the kernels are compiled to (ahead_of_time.py); no GPU is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lib_accel.kernels import configs
from lib_accel.kernels.ahead_of_time import build
from lib_accel.kernels.gpus import GPUS, Gpu
from lib_accel.kernels.launches import Read, Shape, launches
from lib_accel.kernels.order import FIRST, FOLDER, LAST, PREDICTED, Row, content_of, file_of, key_of, text_of
from lib_accel.kernels.predict import Needs, launch_us
from lib_accel.kernels.variants import usual_variants

# Of a program by name, its tile, the dtype that goes in, and whether images lie with their channels last.
Known = Mapping[tuple[str, Any, torch.dtype | None, bool | None], Needs]

_HALF, _SINGLE = torch.float16, torch.float32

# Channels and pixels of images, two of which a UNet has for guidance; those of joined ones follow the others.
_UNET_IMAGES = (
    *((320, 4096), (640, 1024), (1280, 256), (1280, 64), (960, 4096), (1920, 1024), (2560, 256)),
    *((320, 16384), (640, 4096), (1280, 1024), (960, 16384), (1920, 4096), (2560, 1024)),
)
# The decoder's, one at a time, for pictures of 512 and 1024 pixels; also in float32.
_VAE_IMAGES = ((512, 4096), (512, 16384), (512, 65536), (256, 262144), (128, 262144), (128, 1048576))

# Tokens and channels, of two.
_TOKENS = ((4096, 320), (1024, 640), (256, 1280), (64, 1280), (4096, 640), (1024, 1280))


def shapes(capability: int) -> Iterator[Shape]:
    """All that a table has a row for, of kernels that a GPU of that capability (times ten) takes."""
    images = [(_HALF, 2, *each) for each in _UNET_IMAGES]
    images += [(dtype, 1, *each) for dtype in (_HALF, _SINGLE) for each in _VAE_IMAGES]
    for kernel in ("group_norm", "bias_residual"):
        for kind in (FIRST, LAST):
            for dtype, batch, channels, pixels in images:
                yield Shape(kernel, kind, dtype, batch, pixels, channels)
    for tokens, channels in _TOKENS:
        yield Shape("bias_residual", LAST, _HALF, 2, tokens, channels)
        yield Shape("layer_norm", "", _HALF, 2, tokens, channels)
        yield Shape("geglu", "", _HALF, 2, tokens, 4 * channels)
        if capability >= 80:
            yield Shape("linear_geglu", "", _HALF, 2, tokens, channels)


def tiles(shape: Shape, capability: int) -> Sequence[Any]:
    """The tiles that the kernel has for a shape on GPUs of that capability, as `candidates` gives them."""
    rows = shape.batch * shape.positions
    if shape.kernel == "group_norm":
        elements = shape.channels // 32 * shape.positions
        return configs.group_norm(elements, shape.positions, is_last=shape.kind == LAST)
    if shape.kernel == "bias_residual":
        columns = shape.channels if shape.kind == LAST else shape.positions
        return configs.candidates(configs.BIAS_RESIDUAL, columns)
    if shape.kernel == "linear_geglu":
        is_large = capability in (90, 100)
        return configs.candidates(configs.LINEAR_GEGLU_LARGE if is_large else configs.LINEAR_GEGLU, rows)
    table = configs.GEGLU if shape.kernel == "geglu" else configs.WHOLE_ROWS
    return configs.candidates(table, shape.channels)


def predicted_us(shape: Shape, gpu: Gpu, known: Known) -> dict[str, float | None]:
    """Microseconds by tile, the best first; None where it cannot run, or spills."""
    found = {}
    for tile in tiles(shape, gpu.capability):
        calls = launches(shape, tile, gpu, _reader(shape, known))
        found[key_of(tile)] = math.fsum(launch_us(each, gpu) for each in calls)
    found = dict(sorted(found.items(), key=lambda item: item[1]))
    return {tile: us if math.isfinite(us) else None for tile, us in found.items()}


def table(gpu: Gpu, known: Known) -> Sequence[Row]:
    """The rows of a GPU: one a case, as an image of channels last is to a sum what as many tokens are."""
    cases = {shape.case: shape for shape in shapes(gpu.capability)}
    return [Row(case, predicted_us(shape, gpu, known), False) for case, shape in cases.items()]


def write_tables(folder: Path = FOLDER, gpus: Sequence[Gpu] = GPUS) -> Iterator[Path]:
    """Compiles what a table of each GPU needs, and writes them; gives each file as it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for capability in dict.fromkeys(gpu.capability for gpu in gpus):
        known = needs(capability)
        for gpu in gpus:
            if gpu.capability == capability:
                file = folder / file_of(gpu, is_measured=False).name
                file.write_text(text_of(content_of(gpu, PREDICTED, table(gpu, known))), "utf-8")
                yield file


def needs(capability: int) -> Known:
    """What the programs of all tiles take of a GPU, compiled for its capability."""
    done = ((built.variant, built.needs) for built in build(usual_variants(), capability))
    return {(each.kernel, each.tile, each.dtype, each.is_last): found for each, found in done}


def _reader(shape: Shape, known: Known) -> Read:
    last = {FIRST: False, LAST: True}.get(shape.kind)

    def read(program: str, tile: Any) -> Needs:
        if program == "group_moments":
            return known[program, tile, None, None]
        return known[program, tile, shape.dtype, last]

    return read
