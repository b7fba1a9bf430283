"""The least time that a step can take on an H200: what its arithmetic and its bytes need, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GPU = "H200"

# Source: half-precision matrix products and plain copies as such a GPU was seen to do them, which is less
# than its data sheet says. Other GPUs have other floors, so that shares compare on this one only.
FLOP_PER_S = 790e12
BYTES_PER_S = 4.3e12

# Source: FLOP at the rate above; weights and what goes in and out at the other, where that takes longer. By
# model, pixels of a side and pictures; a UNet is called with two latents a picture, for guidance.
FLOORS_MS: Mapping[tuple[str, int, int], float] = MappingProxyType(
    {
        ("sd15", 512, 1): 2.03,
        ("sdxl", 1024, 1): 17.1,
        ("vae", 512, 1): 3.2,
        ("vae", 1024, 1): 13.3,
    }
)
CONTROL_MS = 0.72  # one more ControlNet of SD1.5 at 512 pixels, one picture


def floor_ms(flop: float, size_bytes: float = 0.0) -> float:
    """Milliseconds that so much arithmetic and so many bytes take at least; the longer of both counts."""
    return 1000 * max(flop / FLOP_PER_S, size_bytes / BYTES_PER_S)


def case_floor_ms(
    model: str, side_px: int, pictures: int, *, controls: int = 0, flop: float, weight_bytes: float
) -> tuple[float, str]:
    """The floor of a call in milliseconds, and where it comes from: the table, or else what was counted."""
    known = FLOORS_MS.get((model, side_px, 1))
    if known is not None and (controls == 0 or (model, side_px) == ("sd15", 512)):
        return pictures * (known + controls * CONTROL_MS), "table"
    return floor_ms(flop, weight_bytes), "counted FLOP and bytes of weights"
