"""The shape of the weight that a network's layer is for, as far as the tensors of each kind tell it.

Each function takes the tensors of one layer by their roles, and returns None if they do not belong together.
A linear factor may be stored as a 1x1 kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from lib_accel.lora import rotation
from lib_accel.lora.network import Multiple, Shape

Tensors = Mapping[str, Tensor]
Sides = tuple[int, ...]


def _pair(left: Tensor, right: Tensor) -> bool:
    """Whether `left @ right` can be computed, once kernels are laid out in rows."""
    return left.ndim in (2, 4) and right.ndim in (2, 4) and left.flatten(1).shape[1] == right.shape[0]


def _is_between(mid: Tensor, left: int, right: int) -> bool:
    """Whether a mid tensor (rank, rank, height, width) fits between factors of these ranks."""
    return mid.ndim == 4 and tuple(mid.shape[:2]) == (left, right)


def _is_pointwise(tensor: Tensor) -> bool:
    return tensor.ndim in (2, 4) and all(side == 1 for side in tensor.shape[2:])


def _kernel(tensor: Tensor) -> tuple[int, int]:
    return (1, 1) if tensor.ndim == 2 else (tensor.shape[2], tensor.shape[3])


def lora(tensors: Tensors) -> Shape | None:
    """Of LoRA and LoCon: (out, in, height, width)."""
    down, up, mid = tensors["down"], tensors["up"], tensors.get("mid")
    if not (_is_pointwise(up) and _pair(up, down)):
        return None
    if mid is not None and not (_is_between(mid, up.shape[1], len(down)) and _is_pointwise(down)):
        return None
    return _if_magnitude_fits(tensors, (up.shape[0], down.shape[1], *_kernel(down if mid is None else mid)))


def loha(tensors: Tensors) -> Shape | None:
    """Of LoHa: both halves have it, with the inputs of a kernel in a row unless there are mid tensors."""
    shapes = {
        _half_shape(*(tensors.get(f"hada_{role}") for role in (f"w{n}_a", f"w{n}_b", f"t{n}")))
        for n in (1, 2)
    }
    return _if_magnitude_fits(tensors, shapes.pop()) if len(shapes) == 1 else None


def _half_shape(a: Tensor | None, b: Tensor | None, mid: Tensor | None) -> Sides | None:
    """The shape of `a @ b` or, with a mid tensor, of `delta.cp_product`."""
    assert a is not None
    assert b is not None
    if mid is not None:
        both = a.ndim == b.ndim == 2 and _is_between(mid, len(a), len(b))
        return (a.shape[1], b.shape[1], *mid.shape[2:]) if both else None
    return (a.shape[0], b[0].numel()) if _pair(a, b) else None


def lokr(tensors: Tensors) -> Shape | None:
    """Of LoKr: the products of the sides of both factors."""
    small = _whole_shape(tensors, "lokr_w1", None)
    large = _whole_shape(tensors, "lokr_w2", tensors.get("lokr_t2"))
    if small is None or large is None or len(small) != 2 or len(large) not in (2, 4):
        return None
    sides = (small[0] * large[0], small[1] * large[1], *large[2:])
    return _if_magnitude_fits(tensors, sides)


def _whole_shape(tensors: Tensors, role: str, mid: Tensor | None) -> Sides | None:
    if role in tensors:
        return tuple(tensors[role].shape)
    return _half_shape(tensors[f"{role}_a"], tensors[f"{role}_b"], mid)


def full(tensors: Tensors) -> Shape | None:
    """Of a difference as it is, which may be a norm's too."""
    return _if_magnitude_fits(tensors, tuple(tensors["diff"].shape))


def _if_magnitude_fits(tensors: Tensors, shape: Sides | None) -> Sides | None:
    """The shape, unless there is a magnitude that has one for neither its outputs nor its inputs."""
    if shape is None or not MAGNITUDES & tensors.keys():
        return shape
    rows, columns = (*magnitude(tensors).shape, 1)[:2]
    if len(shape) not in (2, 4):
        return None
    if rows == 1 and len(shape) == 2 and columns not in (1, shape[1]):  # so many of the inputs are taps
        side = math.isqrt(shape[1] // columns)
        shape = (shape[0], shape[1] // max(side**2, 1), side, side)
    return shape if (rows, columns) in ((shape[0], 1), (1, shape[1])) else None


def length(role: str) -> Callable[[Tensors], Shape | None]:
    """Of a vector, as biases and norms are."""
    return lambda tensors: tuple(tensors[role].shape) if tensors[role].ndim == 1 else None


def ia3(tensors: Tensors) -> Shape | None:
    """Of LyCORIS's (IA)3, which tells the number of inputs or of outputs."""
    count = tensors["weight"].numel()
    return (None, count, None, None) if tensors["on_input"].item() else (count, None, None, None)


def rotated(role: str, ndim: int) -> Callable[[Tensors], Shape | None]:
    """Of OFT, and of BOFT with its 4 dimensions, which tell the number of outputs."""

    def shape(tensors: Tensors) -> Shape | None:
        blocks, rescale = tensors[role], tensors.get("rescale")
        if blocks.ndim != ndim or blocks.shape[-1] != blocks.shape[-2]:
            return None
        number, size = blocks.shape[-3], blocks.shape[-1]
        if ndim == 4 and (size % 2 or number % 2 ** (len(blocks) - 1)):  # outputs do not meet in pairs
            return None
        count = number * size
        return None if rescale is not None and rescale.numel() != count else (count, None, None, None)

    return shape


def peft_oft(tensors: Tensors) -> Shape | None:
    """Of peft's OFT, which tells the number of inputs in a row; one block may stand for all of them."""
    entries = tensors["oft_R"]
    size = rotation.block_size(entries.shape[1]) if entries.ndim == 2 else 0
    if size == 0:
        return None
    return (None, len(entries) * size if len(entries) > 1 else Multiple(size))


def peft_boft(tensors: Tensors) -> Shape | None:
    """Of peft's BOFT, which tells the number of outputs, and of inputs in a row."""
    blocks, gain = tensors["boft_R"], tensors["boft_s"]
    if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3]:
        return None
    levels, number, size = blocks.shape[:3]
    is_even = levels == 1 or (size % 2 == 0 and number % 2 ** (levels - 1) == 0)
    return (gain.numel(), number * size) if is_even else None


def glora(tensors: Tensors) -> Shape | None:
    """Of GLoRA: (out, in, height, width)."""
    if any(tensors[role].ndim not in (2, 4) for role in ("a1", "a2", "b1", "b2")):
        return None
    parts = glora_parts(tensors)
    if not all(_is_pointwise(each) for each in (parts.inner, parts.outer, parts.up)):
        return None
    if not (_pair(parts.inner, parts.outer) and parts.inner.shape[0] == parts.outer.shape[1]):
        return None
    down, mid = parts.down, parts.mid
    fits = _pair(parts.up, down) and down.shape[1] == parts.inner.shape[0]
    if mid is not None:
        fits = fits and _is_pointwise(down) and _is_between(mid, parts.up.shape[1], len(down))
    return (parts.up.shape[0], down.shape[1], *_kernel(down if mid is None else mid)) if fits else None


# What both a shape and a change are made of.

MAGNITUDES = {"dora_scale", "magnitude"}


def magnitude(tensors: Tensors) -> Tensor:
    """The norms that DoRA learned, as (out, 1) or (1, in), or all outputs in a row."""
    if "magnitude" in tensors:  # peft's are of outputs, which for convolutions it lays out as (1, out, 1, 1)
        return tensors["magnitude"].flatten()
    scale = tensors["dora_scale"]
    return scale.flatten() if scale.ndim < 2 else scale.reshape(scale.shape[0], -1)


class GLora(NamedTuple):
    """The factors of `weight @ inner @ outer + up @ down`."""

    inner: Tensor  # (in, rank)
    outer: Tensor  # (rank, in)
    up: Tensor  # (out, rank)
    down: Tensor  # (rank, in, ...)
    mid: Tensor | None


def glora_parts(tensors: Tensors) -> GLora:
    """LyCORIS 2 and later; before, and still in A1111's extension, what is first was called second."""
    first, second = ("1", "2") if tensors["a1"].shape[0] >= tensors["a1"].shape[1] else ("2", "1")
    inner, outer = tensors[f"a{first}"], tensors[f"a{second}"]
    return GLora(inner, outer, tensors[f"b{first}"], tensors[f"b{second}"], tensors.get("bm"))
