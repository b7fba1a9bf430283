"""Group norm of an image, with its SiLU and the cast that follows, in one to three launches."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.kernels import configs
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


# By the coarsest dtype on the way. Rounded by the norm and by SiLU, or by the cast that follows. Where SiLU
# is steep, |x * silu'(x)| is up to 0.5 larger than |silu(x)|, and so is what it makes of the norm's rounding.
TOLERANCES = rounded(times=2, slope=0.5)


def group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> Tensor:
    """`reference`, by the kernel where `why_not` is empty."""
    if why_not(x, weight, bias, norm):
        return reference(x, weight, bias, norm)
    return launch(x, weight, bias, norm)


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> Tensor:
    """Group norm over the channels of x (batch, channels, height, width), SiLU if asked for, and a cast.

    Statistics and arithmetic are float32; weight and bias are (channels,) of any dtype or None.
    Raises what F.group_norm raises: channels that do not divide into groups, one value a group.
    """
    weight, bias = (None if t is None else t.float() for t in (weight, bias))
    result = F.group_norm(x.float(), norm.groups, weight, bias, norm.eps).to(norm.dtype)
    if norm.silu:
        result = F.silu(result)
    return result.to(norm.out_dtype or norm.dtype)


def why_not(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> tuple[str, ...]:
    """Reasons for which the kernel cannot take these; empty if it can."""
    return why_not_images((x,), weight, bias, norm)


def launch(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> Tensor:
    """`reference` by the kernel, laid out in memory as x. Call it only where `why_not` is empty."""
    out = torch.empty_like(x, dtype=norm.out_dtype or norm.dtype)
    launch_images((x,), weight, bias, norm, out=out, joined=None)
    return out


def why_not_images(
    images: tuple[Tensor, ...], weight: Tensor | None, bias: Tensor | None, norm: Norm
) -> tuple[str, ...]:
    """`why_not` of one image, or of two that are joined along their channels."""
    first = images[0]
    reasons = list(why_not_tensors(*images, weight, bias))
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
    if norm.groups < 1 or channels % norm.groups:
        reasons.append(f"{channels} channels do not divide into {norm.groups} groups")
    elif batch * channels // norm.groups * pixels == 1:
        reasons.append("a group is one value, which torch refuses")
    if _is_last(images) is None:
        strides = [image.stride() for image in images]
        reasons.append(f"strides are {strides}, needs contiguous with channels first, or last in all images")
    if channels * pixels > INT32:
        reasons.append(f"an image has {channels * pixels} elements, at most {INT32} can be counted")
    # The finest cut that any table makes is a program a channel for 64 pixels.
    return (*reasons, *why_not_programs(batch * channels * (pixels // 64 + 1)))


def launch_images(
    images: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    *,
    out: Tensor,
    joined: Tensor | None,
) -> None:
    """Writes the group norm of one image, or of two side by side, to `out`, and the images to `joined`.

    out, and joined if given: (batch, channels of all, height, width), laid out in memory as the images.
    """
    width = out.shape[1] // norm.groups
    last = bool(_is_last(images))
    with current(out.device):
        if width * out.shape[2] * out.shape[3] <= configs.WHOLE_GROUPS[-1].up_to:
            _launch_whole(images, weight, bias, norm, out, joined, last)
        else:
            _launch_split(images, weight, bias, norm, out, joined, last)


def _launch_whole(
    images: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    out: Tensor,
    joined: Tensor | None,
    last: bool,
) -> None:
    batch, channels, height, wide = out.shape
    width, pixels = channels // norm.groups, height * wide
    line = configs.pick(configs.WHOLE_GROUPS, width * pixels)
    programs("group_norm").whole_groups[(batch * norm.groups,)](
        *_pair(images),
        weight,
        bias,
        out,
        joined,
        channels,
        images[0].shape[1],
        pixels,
        width,
        norm.eps,
        LAST=last,
        SILU=norm.silu,
        NORM=triton_dtype(norm.dtype),
        BLOCK=line.block,
        num_warps=line.warps,
    )


def _launch_split(
    images: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    out: Tensor,
    joined: Tensor | None,
    last: bool,
) -> None:
    batch, channels, height, wide = out.shape
    split, width, pixels = images[0].shape[1], channels // norm.groups, height * wide
    chunk = configs.pick(configs.CHUNKS_CHANNELS_LAST if last else configs.CHUNKS_CHANNELS_FIRST, pixels)
    tile = {"LAST": last, "CHANNELS": chunk.channels, "PIXELS": chunk.pixels, "num_warps": chunk.warps}
    blocks = _ceil(channels, chunk.channels)
    chunks = _ceil(pixels, chunk.per_chunk)
    means, squares = torch.empty((2, batch * channels * chunks), dtype=torch.float32, device=out.device)
    mean, scale = torch.empty((2, batch * norm.groups), dtype=torch.float32, device=out.device)

    code = programs("group_norm")
    code.partial_moments[(batch * blocks * chunks,)](
        *_pair(images), means, squares, channels, split, pixels, chunks, chunk.per_chunk, **tile
    )
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
    code.normalise[(batch * blocks * _ceil(pixels, chunk.pixels),)](
        *_pair(images),
        mean,
        scale,
        weight,
        bias,
        out,
        joined,
        channels,
        split,
        pixels,
        width,
        SILU=norm.silu,
        NORM=triton_dtype(norm.dtype),
        **tile,
    )


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
