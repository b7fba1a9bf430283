"""How far what ours makes is from what stock makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def relative_l2(ours: torch.Tensor, stock: torch.Tensor) -> float:
    """Norm of the difference over the norm of stock's, both in float64 and of one shape; 0 for equal tensors.

    Raises ValueError if the shapes differ, since torch would otherwise repeat the smaller one.
    """
    if ours.shape != stock.shape:
        raise ValueError(f"shapes differ: ours {tuple(ours.shape)}, stock {tuple(stock.shape)}")
    far, norm = (ours.double() - stock.double()).norm().item(), stock.double().norm().item()
    if far == 0.0:
        return 0.0
    return far / norm if norm else float("inf")


def to_bytes(picture: torch.Tensor) -> np.ndarray[Any, Any]:
    """A decoder's (batch, 3, height, width) in -1..1 as 8-bit channels of (batch, height, width, 3)."""
    levels = (picture.float() / 2 + 0.5).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def picture_difference(ours: np.ndarray[Any, Any], stock: np.ndarray[Any, Any]) -> tuple[int, float]:
    """Largest and mean difference of a channel, in steps of 255; both pictures are uint8 and of one shape."""
    far = np.abs(ours.astype(np.int16) - stock.astype(np.int16))
    return int(far.max()), float(far.mean())
