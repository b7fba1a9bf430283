"""Mean and variance of the groups of an image, band by band: nothing of the image's size is made."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(x: Tensor, groups: int, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels of x (batch, channels, height, width): (batch, groups).

    They are computed in float32, or in float64 of such an image, with so many rows at a time. The variance is
    that of the values there are, as norms take it.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    of_band = _by_subtraction if x.device.type == "cpu" else _at_once
    found = [of_band(band, groups, wide) for band in torch.split(x, rows, dim=2)]
    means, variances = (torch.stack(each) for each in zip(*found, strict=True))
    shares = _shares(x, rows, len(found), wide)
    mean = (means * shares).sum(0)
    # Of what lies around the mean of its band, and of the band's mean around that of all: no large numbers
    # are subtracted, as the mean's square would be from the mean of squares.
    return mean, ((variances + (means - mean).square()) * shares).sum(0)


def _shares(x: Tensor, rows: int, bands: int, dtype: torch.dtype) -> Tensor:
    """Each band's part of the image, (bands, 1, 1); filled on the device, which nobody waits for."""
    height = x.shape[2]
    shares = torch.full((bands, 1, 1), min(rows, height) / height, dtype=dtype, device=x.device)
    shares[-1].fill_((height - (bands - 1) * rows) / height)
    return shares


def _at_once(band: Tensor, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance by torch's own function, which a GPU spreads over all of itself."""
    variance, mean = torch.var_mean(
        torch.unflatten(band.to(dtype), 1, (groups, -1)), dim=(2, 3, 4), correction=0
    )
    return mean, variance


def _by_subtraction(band: Tensor, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same in three passes over a copy: torch's function goes value by value on a CPU."""
    # In the order of channels first, so that a group lies together.
    own = torch.empty(band.shape, dtype=dtype, device=band.device).copy_(band)
    values = own.view(len(band), groups, -1)
    mean = values.mean(-1, keepdim=True)
    values -= mean
    return mean[..., 0], torch.linalg.vector_norm(values, dim=-1).square() / values.shape[-1]
