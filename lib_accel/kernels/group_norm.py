"""Group norm of an image, with its SiLU and the cast that follows, in one to three launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.kernels import configs
from lib_accel.kernels.configs import Chunk, Line
from lib_accel.kernels.order import FIRST, LAST, Case, in_order
from lib_accel.kernels.support import (
    DTYPES,
    INT32,
    current,
    programs,
    triton_dtype,
    why_not_programs,
    why_not_tensors,
    why_not_vectors,
)
from lib_accel.kernels.tolerance import rounded


class Norm(NamedTuple):
    """What of a group norm is not a tensor."""

    groups: int
    eps: float
    # What the norm's result is rounded to, and SiLU computed from: float32 under CUDA's autocast, the image's
    # own dtype where a layer casts back before SiLU.
    dtype: torch.dtype
    silu: bool = False
    out_dtype: torch.dtype | None = None  # what the result is cast to in the end; None leaves it in `dtype`


class Given(NamedTuple):
    """What a group norm is computed from."""

    images: tuple[Tensor, ...]  # one, or two that are joined along their channels
    weight: Tensor | None
    bias: Tensor | None
    shift: Tensor | None
    norm: Norm


# One program a group, which walks over it with such a run of elements; or groups that several programs share.
Way = Line | Chunk

# By the coarsest dtype on the way. Rounded by the norm and by SiLU, or by the cast that follows. Where SiLU
# is steep, |x * silu'(x)| is up to 0.5 larger than |silu(x)|, and so is what it makes of the norm's rounding.
TOLERANCES = rounded(times=2, slope=0.5)


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, shift: Tensor | None = None
) -> Tensor:
    """`reference`, by the kernel where `why_not` is empty."""
    if why_not(x, weight, bias, norm, shift):
        return reference(x, weight, bias, norm, shift)
    return launch(x, weight, bias, norm, shift)


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, shift: Tensor | None = None
) -> Tensor:
    """Group norm over the channels of x (batch, channels, height, width), SiLU if asked for, and a cast.

    shift: (batch, channels) of any dtype or None, added to x before, and not rounded: a residual block's
    time embedding, and the bias of a convolution that ran without it. Statistics and arithmetic are float32;
    weight and bias are (channels,) of any dtype or None.
    Raises what F.group_norm raises: channels that do not divide into groups, one value a group.
    """
    weight, bias = (None if t is None else t.float() for t in (weight, bias))
    source = x.float()
    if shift is not None:
        source = source + shift.float()[:, :, None, None]
    result = F.group_norm(source, norm.groups, weight, bias, norm.eps).to(norm.dtype)
    if norm.silu:
        result = F.silu(result)
    return result.to(norm.out_dtype or norm.dtype)


def why_not(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, shift: Tensor | None = None
) -> tuple[str, ...]:
    """Reasons for which the kernel cannot take these; empty if it can."""
    return why_not_images((x,), weight, bias, norm, shift)


def candidates(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm, shift: Tensor | None = None
) -> Sequence[Way]:
    """Ways that `launch` may take for these, its own first. Call it only where `why_not` is empty."""
    return ways((x,), norm)


def launch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    shift: Tensor | None = None,
    *,
    tile: Way | None = None,
) -> Tensor:
    """`reference` by the kernel, laid out in memory as x.

    Call it only where `why_not` is empty. tile: one of `candidates`; None takes the first.
    """
    out = torch.empty_like(x, dtype=norm.out_dtype or norm.dtype)
    launch_images(Given((x,), weight, bias, shift, norm), out=out, joined=None, tile=tile)
    return out


def why_not_images(
    images: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    shift: Tensor | None = None,
) -> tuple[str, ...]:
    """`why_not` of one image, or of two that are joined along their channels."""
    first = images[0]
    reasons = list(why_not_tensors(*images, weight, bias, shift))
    if unfit := [each for each in (norm.dtype, norm.out_dtype or norm.dtype) if each not in DTYPES]:
        reasons.append(f"result is {unfit[0]}, needs one of {DTYPES}")
    if any(image.dim() != 4 for image in images):
        reasons.append(f"images have {[image.dim() for image in images]} dimensions, needs 4")
        return tuple(reasons)
    if any(_without_channels(image) != _without_channels(first) for image in images):
        shapes = [(image.dtype, tuple(image.shape)) for image in images]
        reasons.append(f"images are {shapes}, needs one dtype, batch, height and width")
    batch, _, height, width = first.shape
    channels, pixels = sum(image.shape[1] for image in images), height * width
    reasons += why_not_vectors(channels, weight=weight, bias=bias)
    if shift is not None and (shift.shape != (batch, channels) or not shift.is_contiguous()):
        found = f"{tuple(shift.shape)} with strides {shift.stride()}"
        reasons.append(f"shift is {found}, needs ({batch}, {channels}) and contiguous")
    if norm.groups < 1 or channels % norm.groups:
        reasons.append(f"{channels} channels do not divide into {norm.groups} groups")
    elif batch * channels // norm.groups * pixels == 1:
        reasons.append("a group is one value, which torch refuses")
    if _is_last(images) is None:
        strides = [image.stride() for image in images]
        reasons.append(f"strides are {strides}, needs contiguous with channels first, or last in all images")
    if channels * pixels > INT32:
        reasons.append(f"an image has {channels * pixels} elements, at most {INT32} can be counted")
    # No table makes a finer cut than a program a channel for 16 pixels.
    return (*reasons, *why_not_programs(batch * channels * (pixels // 16 + 1)))


def ways(images: tuple[Tensor, ...], norm: Norm) -> Sequence[Way]:
    """`candidates` of one image, or of two that are joined along their channels."""
    batch, _, height, width = images[0].shape
    channels, pixels = sum(image.shape[1] for image in images), height * width
    is_last = bool(_is_last(images))
    tiles = configs.group_norm(channels // norm.groups * pixels, pixels, is_last=is_last)
    case = Case("group_norm", LAST if is_last else FIRST, images[0].dtype, batch * pixels, channels)
    return in_order(tiles, case, images[0].device)


def launch_images(given: Given, *, out: Tensor, joined: Tensor | None, tile: Way | None) -> None:
    """Writes the group norm of one image, or of two side by side, to `out`, and the images to `joined`.

    out, and joined if given: (batch, channels of all, height, width), laid out in memory as the images.
    """
    tile = tile or ways(given.images, given.norm)[0]
    with current(out.device):
        if isinstance(tile, Line):
            _launch_whole(given, out, joined, tile)
        else:
            _launch_split(given, out, joined, tile)


def _launch_whole(given: Given, out: Tensor, joined: Tensor | None, line: Line) -> None:
    batch, channels, height, wide = out.shape
    norm = given.norm
    programs("group_norm").whole_groups[(batch * norm.groups,)](
        *_pair(given.images),
        given.shift,
        given.weight,
        given.bias,
        out,
        joined,
        channels,
        given.images[0].shape[1],
        height * wide,
        channels // norm.groups,
        norm.eps,
        LAST=bool(_is_last(given.images)),
        SILU=norm.silu,
        NORM=triton_dtype(norm.dtype),
        BLOCK=line.block,
        num_warps=line.warps,
    )


def _launch_split(given: Given, out: Tensor, joined: Tensor | None, chunk: Chunk) -> None:
    batch, channels, height, wide = out.shape
    split, norm, pixels = given.images[0].shape[1], given.norm, height * wide
    width = channels // norm.groups
    tile = {"LAST": bool(_is_last(given.images)), "CHANNELS": chunk.channels, "PIXELS": chunk.pixels}
    blocks = _ceil(channels, chunk.channels)
    mean, scale = _moments(given, chunk, tile, (batch, channels, pixels))
    programs("group_norm").normalise[(batch * blocks * _ceil(pixels, chunk.pixels),)](
        *_pair(given.images),
        given.shift,
        mean,
        scale,
        given.weight,
        given.bias,
        out,
        joined,
        channels,
        split,
        pixels,
        width,
        SILU=norm.silu,
        NORM=triton_dtype(norm.dtype),
        **tile,
        num_warps=chunk.warps,
    )


def _moments(
    given: Given, chunk: Chunk, tile: Mapping[str, int], sizes: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Each group's mean and 1 / sqrt(variance + eps). sizes: batch, channels and pixels of the result."""
    batch, channels, pixels = sizes
    norm, device = given.norm, given.images[0].device
    chunks = _ceil(pixels, chunk.per_chunk)
    means, squares = torch.empty((2, batch * channels * chunks), dtype=torch.float32, device=device)
    mean, scale = torch.empty((2, batch * norm.groups), dtype=torch.float32, device=device)
    code = programs("group_norm")
    code.partial_moments[(batch * _ceil(channels, chunk.channels) * chunks,)](
        *_pair(given.images),
        given.shift,
        means,
        squares,
        channels,
        given.images[0].shape[1],
        pixels,
        chunks,
        chunk.per_chunk,
        **tile,
        num_warps=chunk.warps,
    )
    width = channels // norm.groups
    line = configs.pick(configs.GROUP_MOMENTS, width * chunks)
    code.group_moments[(batch * norm.groups,)](
        means,
        squares,
        mean,
        scale,
        pixels,
        chunks,
        chunk.per_chunk,
        width,
        norm.eps,
        BLOCK=line.block,
        num_warps=line.warps,
    )
    return mean, scale


def _is_last(images: tuple[Tensor, ...]) -> bool | None:
    """Whether channels come last in memory, in all images; None if they are of no layout that we take."""
    if all(image.is_contiguous() for image in images):
        return False
    if all(image.is_contiguous(memory_format=torch.channels_last) for image in images):
        return True
    return None


def _without_channels(image: Tensor) -> tuple[object, ...]:
    return image.dtype, image.shape[0], *image.shape[2:]


def _pair(images: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    return images[0], images[1] if len(images) > 1 else None


def _ceil(size: int, step: int) -> int:
    return -(-size // step)
