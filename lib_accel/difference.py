"""How far two pictures are apart, as a number and as a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops

AMPLIFIED = 20  # times that differences are drawn larger than they are


def difference(one: Image.Image, other: Image.Image) -> tuple[int, Image.Image]:
    """The largest difference of a channel, of 255, and all of them AMPLIFIED times; black where equal.

    Raises ValueError if the sizes differ.
    """
    if one.size != other.size:
        raise ValueError(f"pictures of {one.size} and {other.size} pixels cannot be compared")
    apart = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    return int(np.asarray(apart).max()), apart.point(lambda value: min(255, value * AMPLIFIED))
