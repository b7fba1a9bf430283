"""The classes of diffusers and transformers that acceleration patches, and what they have now."""

from __future__ import annotations

import sys
from typing import Any

from lib_accel.layouts import ENTRIES


def patched_classes() -> list[type]:
    """Every class that is imported and that an engine stands in front of."""
    found = (
        getattr(sys.modules.get(home), name, None)
        for home, _, name in (entry.path.rpartition(".") for entry in ENTRIES)
    )
    return [kind for kind in found if kind is not None]


def methods_of_classes() -> dict[str, Any]:
    """The `forward` of each of them, and that it has one of its own."""
    return {f"{kind.__module__}.{kind.__name__}": kind.__dict__["forward"] for kind in patched_classes()}
