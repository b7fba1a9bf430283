"""Sizes and devices that the demo can work with."""

from __future__ import annotations

import torch

from lib_accel.demo.errors import refused

SIDE_STEP_PX = 8
MAX_SIDE_PX = 2048


def check_size(width: int, height: int) -> None:
    """Raises DemoError for a size in pixels that no picture can have."""
    near = [min(max(_rounded(side), SIDE_STEP_PX), MAX_SIDE_PX) for side in (width, height)]
    if near != [width, height]:
        raise refused(
            "size",
            got=f"{width}x{height}",
            expected=f"multiples of {SIDE_STEP_PX} pixels from {SIDE_STEP_PX} to {MAX_SIDE_PX}",
            do=f"the nearest is {near[0]}x{near[1]}",
        )


def _rounded(side_px: int) -> int:
    return (side_px + SIDE_STEP_PX // 2) // SIDE_STEP_PX * SIDE_STEP_PX


def check_device(name: str) -> torch.device:
    """The device of that name. Raises DemoError if torch does not know it or cannot use it here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        got = f"{name!r}, which torch does not know"
        raise refused("device", got=got, expected="cpu, cuda or mps", do="give one of them") from None
    if not _is_usable(device):
        got = f"{name!r}, but torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices"
        raise refused("device", got=got, expected="one that is usable here", do="cpu always works")
    return device


def _is_usable(device: torch.device) -> bool:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return device.type != "meta"
