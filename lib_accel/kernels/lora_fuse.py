"""Merges LoRAs into many weights at once: a launch for all layers of one shape, instead of four a layer.

Timed by the bench only, until a GPU has shown by how much it is faster than lora.accumulate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib_accel.device import autocast_off
from lib_accel.kernels import configs
from lib_accel.kernels.configs import Product
from lib_accel.kernels.support import (
    INT32,
    current,
    is_plain,
    programs,
    triton_dtype,
    why_not_programs,
    why_not_tensors,
)
from lib_accel.kernels.tolerance import rounded

# One rounding at the end. Sums over the ranks are of some hundred products of about unit size.
TOLERANCES = rounded(times=1, arithmetic=1e-4)

_ALIGNMENT = 16  # bytes


class Pair(NamedTuple):
    """One LoRA's change of a weight: `scale * up @ down`."""

    up: Tensor  # (out, rank), contiguous
    down: Tensor  # (rank, in), contiguous
    scale: float


class Layer(NamedTuple):
    """One weight, its pristine bits, and what is to be added to them."""

    live: Tensor  # (out, in) or (out, in, height, width); written in place
    base: Tensor  # of the same shape and dtype; not changed, unless it is `live` itself
    pairs: Sequence[Pair]


class _Kind(NamedTuple):
    """What all layers of one launch have in common."""

    device: torch.device
    shape: tuple[int, ...]
    dtype: torch.dtype
    factor_dtype: torch.dtype


@torch.no_grad()
def lora_fuse(layers: Sequence[Layer]) -> None:
    """`reference`, by one launch for all layers of each kind where `why_not` is empty for them."""
    kinds: dict[_Kind, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), []).append(layer)
    for alike in kinds.values():
        (reference if why_not(alike) else launch)(alike)


@torch.no_grad()
def reference(layers: Sequence[Layer]) -> None:
    """Makes each layer's `live` its base + the sum of its pairs, computed in float32 and rounded once."""
    for layer in layers:
        total = layer.base.to(layer.live.device, torch.float32, copy=True).contiguous()
        with autocast_off(total.device.type):
            for up, down, scale in layer.pairs:
                total.flatten(1).addmm_(up.float(), down.float(), alpha=scale)
        layer.live.copy_(total)


def why_not(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Reasons for which one launch cannot take these layers together; empty if it can."""
    if not layers:
        return ("there are no layers",)
    kinds = dict.fromkeys(map(_kind, layers))
    if len(kinds) > 1:
        return (f"layers are {', '.join(map(str, kinds))}, needs one device, shape, dtype and factor dtype",)
    tensors = [tensor for layer in layers for tensor in _tensors(layer)]
    with torch.no_grad():  # weights ask for gradients, though none are taken here
        reasons = list(why_not_tensors(*tensors))
    live = layers[0].live
    if live.dim() < 2:
        return (*reasons, f"weights have {live.dim()} dimensions, needs 2 or more")
    height, width = live.shape[0], live.numel() // max(live.shape[0], 1)
    for layer in layers:
        reasons += [reason for reason in _why_not_shapes(layer) if reason not in reasons]
    if not all(tensor.is_contiguous() for tensor in tensors):
        reasons.append("a weight, base or factor is not contiguous")
    elif all(map(is_plain, tensors)) and any(tensor.data_ptr() % _ALIGNMENT for tensor in tensors):
        reasons.append(f"a weight, base or factor does not begin at a multiple of {_ALIGNMENT} bytes")
    if max(tensor.numel() for tensor in tensors) > INT32:
        reasons.append(f"a weight or factor has more than {INT32} elements")
    return (*reasons, *why_not_programs(len(layers) * (height // 32 + 1) * (width // 32 + 1)))


def candidates(layers: Sequence[Layer]) -> Sequence[Product]:
    """Tiles that `launch` may take for these, its own first. Call it only where `why_not` is empty."""
    single = _kind(layers[0]).factor_dtype is torch.float32
    ranks = [pair.down.shape[0] for layer in layers for pair in layer.pairs]
    return configs.candidates(configs.FUSE_SINGLE if single else configs.FUSE_HALF, max(ranks, default=0))


@torch.no_grad()
def launch(layers: Sequence[Layer], *, tile: Product | None = None) -> None:
    """`reference` by the kernel, in one launch.

    Call it only where `why_not` is empty. tile: one of `candidates`; None takes the first.
    """
    tile = tile or candidates(layers)[0]
    kind = _kind(layers[0])
    height, width = kind.shape[0], layers[0].live[0].numel()
    tiles = -(-height // tile.height) * -(-width // tile.width)
    with current(kind.device):
        programs("lora_fuse").summed[(len(layers) * tiles,)](
            *_tables(layers, kind.device),
            height,
            width,
            WEIGHT=triton_dtype(kind.dtype),
            FACTOR=triton_dtype(kind.factor_dtype),
            PRECISION="ieee",
            HEIGHT=tile.height,
            WIDTH=tile.width,
            RANK=tile.rank,
            num_warps=tile.warps,
        )


def _tables(layers: Sequence[Layer], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel's tables of layers, pairs and scales on the device, without waiting for it."""
    rows: list[tuple[int, int, int, int]] = []
    pairs: list[tuple[int, int, int]] = []
    scales: list[float] = []
    for layer in layers:
        first = len(pairs)
        for up, down, scale in layer.pairs:
            pairs.append((up.data_ptr(), down.data_ptr(), down.shape[0]))
            scales.append(scale)
        rows.append((layer.live.data_ptr(), layer.base.data_ptr(), first, len(pairs)))
    # Without any pair there is still a row, which nothing reads: an empty tensor has no address.
    tables = (
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(pairs or [(0, 0, 0)], dtype=torch.int64),
        torch.tensor(scales or [0.0], dtype=torch.float32),
    )
    if device.type != "cuda":
        return tables
    layer_table, pair_table, scale_table = (
        table.pin_memory().to(device, non_blocking=True) for table in tables
    )
    return layer_table, pair_table, scale_table


def _why_not_shapes(layer: Layer) -> list[str]:
    live, base, pairs = layer
    height, width = live.shape[0], live.numel() // max(live.shape[0], 1)
    reasons = []
    if (base.shape, base.dtype) != (live.shape, live.dtype):
        reasons.append(
            f"base is {base.dtype} {tuple(base.shape)}, needs {live.dtype} {tuple(live.shape)} as the weight"
        )
    for up, down, _ in pairs:
        rank = down.shape[0] if down.dim() else 0
        if up.shape != (height, rank) or down.shape != (rank, width):
            shapes = f"up {tuple(up.shape)} and down {tuple(down.shape)}"
            reasons.append(f"{shapes} do not make a change of ({height}, {width})")
    if len({tensor.dtype for pair in pairs for tensor in pair[:2]}) > 1:
        reasons.append("factors are of several dtypes, needs one")
    return reasons


def _kind(layer: Layer) -> _Kind:
    live, _, pairs = layer
    factor_dtype = pairs[0].up.dtype if pairs else live.dtype
    return _Kind(live.device, tuple(live.shape), live.dtype, factor_dtype)


def _tensors(layer: Layer) -> list[Tensor]:
    return [layer.live, layer.base, *(tensor for pair in layer.pairs for tensor in pair[:2])]
