"""Weights drawn from a seed: no branch of the network is idle, and the pictures have shapes and colours.

Weights as a class initialises them show nothing: some layers begin at zero, others fade beside what they are
added to. Convolutions drawn without care give static, because no pixel has anything to do with its neighbour.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Share of a 3x3 convolution that is a blur with a random sign per pair of channels; the rest is random.
SMOOTH = 0.9
SMOOTHER = 0.97  # of a decoder: it enlarges eight times

# By part of the name, the first that fits.
_GAINS = (
    ("to_v", 3.0),  # attention averages over tokens
    ("v_proj", 3.0),
    ("decoder.conv_out", 0.7),  # the picture's contrast
    ("conv2", 1.5),  # ends a residual block, and adds to what has grown long since
    ("samplers", 0.4),  # stand in the stream itself, where a blur makes even areas grow each time
    ("controlnet_down_blocks", 0.3),  # all of these add to the UNet
    ("controlnet_mid_block", 0.3),
)
_LAST = ("conv_out.", "decoder.conv_out.")

_BINOMIAL = torch.tensor([1.0, 2.0, 1.0])


def seeded(model: Any, seed: int, *, smooth: float = SMOOTH) -> Any:
    """The model in evaluation mode, each parameter drawn anew; torch's own random state stays as it is.

    Parameters stay where they are and keep their dtype. Equal seeds give equal weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(name, parameter, smooth, generator))
    return model.eval().requires_grad_(False)


def _drawn(name: str, like: Tensor, smooth: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator)
    is_last = name.startswith(_LAST)
    if like.dim() < 2:
        return 1 + 0.2 * noise if name.endswith("weight") else (0.0 if is_last else 0.2) * noise
    if like.dim() == 4 and like.shape[-1] == 3:
        signs = torch.randn(*like.shape[:2], 1, 1, generator=generator)
        noise = (1 - smooth**2) ** 0.5 * noise + smooth * signs * _blur()
    if is_last:
        noise = noise - noise.mean(
            1, keepdim=True
        )  # else what is above zero in all channels tints the picture
    gain = next((gain for part, gain in _GAINS if part in name), 1.0)
    drawn: Tensor = noise * (gain / like[0].numel() ** 0.5)
    return drawn


def _blur() -> Tensor:
    """A 3x3 blur whose elements' mean square is one, as that of the noise beside it."""
    kernel: Tensor = _BINOMIAL[:, None] * _BINOMIAL
    kernel *= 3 / kernel.norm()
    return kernel
