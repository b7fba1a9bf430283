"""Ways to cut what blocks make on their way, in place of the usual one, to hold one against another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MappingProxyType

from lib_accel.blocks import pieces as room
from lib_accel.blocks.rules import Pieces

WHOLE = Pieces(whole_bytes=2**62, piece_bytes=1)  # nothing is so large


@contextlib.contextmanager
def cut_by(pieces: Pieces) -> Iterator[None]:
    """On all devices intermediates are cut so, for the `with` block."""
    before = room.BY_DEVICE
    room.BY_DEVICE = MappingProxyType(dict.fromkeys(before, lambda device: pieces))
    try:
        yield
    finally:
        room.BY_DEVICE = before
