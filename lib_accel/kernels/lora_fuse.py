"""Merges LoRAs into many weights at once: a launch for all layers of one shape, instead of four a layer."""

from __future__ import annotations

import ctypes
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

    up: Tensor  # (out, rank), each row contiguous, as in the first columns of a larger matrix
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
    if not all(map(_is_dense, layers)):
        reasons.append("a weight, base or factor is not contiguous")
    elif all(map(is_plain, tensors)) and any(tensor.data_ptr() % _ALIGNMENT for tensor in tensors):
        reasons.append(f"a weight, base or factor does not begin at a multiple of {_ALIGNMENT} bytes")
    if max(map(_most_elements, layers)) > INT32:
        reasons.append(f"a weight or factor has more than {INT32} elements")
    return (*reasons, *why_not_programs(len(layers) * (height // 32 + 1) * (width // 32 + 1)))


def why_not_dtypes(device: torch.device, *dtypes: torch.dtype) -> tuple[str, ...]:
    """Reasons for which no weights and factors of these dtypes can be merged on a device."""
    return why_not_tensors(*(torch.empty(1, dtype=dtype, device=device) for dtype in dtypes))


def candidates(layers: Sequence[Layer]) -> Sequence[Product]:
    """Tiles that `launch` may take for these, its own first. Call it only where `why_not` is empty."""
    ranks = [pair.down.shape[0] for layer in layers for pair in layer.pairs]
    return tiles_for(_kind(layers[0]).factor_dtype, max(ranks, default=0))


def tiles_for(factors: torch.dtype, rank: int) -> Sequence[Product]:
    """The same by the dtype of the factors and the largest rank."""
    single = factors is torch.float32
    return configs.candidates(configs.FUSE_SINGLE if single else configs.FUSE_HALF, rank)


@torch.no_grad()
def launch(layers: Sequence[Layer], *, tile: Product | None = None) -> None:
    """`reference` by the kernel, in one launch; weights count it as a write to them.

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
    _count_writes(layers)


def _tables(layers: Sequence[Layer], device: torch.device) -> tuple[Tensor, Tensor]:
    """The kernel's tables of layers and pairs on the device, by one upload that nobody waits for."""
    rows: list[int] = []
    pairs: list[int] = []
    count = 0
    for live, base, of_layer in layers:
        rows += (live.data_ptr(), base.data_ptr(), count, count + len(of_layer))
        count += len(of_layer)
        for up, down, scale in of_layer:
            pairs += (up.data_ptr(), down.data_ptr(), down.shape[0], up.stride(0), _bits(scale))
    # Without any pair there is still a number, which nothing reads: an empty tensor has no address.
    table = torch.tensor([*rows, *(pairs or [0])], dtype=torch.int64)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    return table[: len(rows)], table[len(rows) :]


def _bits(scale: float) -> int:
    """Those of the number as float32, in a whole number; of infinity, if it is too large for one."""
    return ctypes.c_int32.from_buffer(ctypes.c_float(scale)).value


def _count_writes(layers: Sequence[Layer]) -> None:
    """Raises torch's count of writes to each weight, as torch's own operations do and Triton's do not.

    By it somebody else who holds a weight's bits sees that they are not the same any more.
    """
    for layer in layers:
        if not layer.live.is_inference():  # those have no count
            torch.autograd.graph.increment_version(layer.live)


def _is_dense(layer: Layer) -> bool:
    return (
        layer.live.is_contiguous()
        and layer.base.is_contiguous()
        and all(_has_dense_rows(up) and down.is_contiguous() for up, down, _ in layer.pairs)
    )


def _has_dense_rows(up: Tensor) -> bool:
    return up.dim() == 2 and (up.stride(1) == 1 or up.shape[1] == 1)


def _most_elements(layer: Layer) -> int:
    """Of one of its tensors, from the first to the last."""
    ups = (up.shape[0] * up.stride(0) for up, _, _ in layer.pairs if up.dim())
    return max([layer.live.numel(), *ups, *(down.numel() for _, down, _ in layer.pairs)])


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
