"""Makes Stable Diffusion inference faster without changing the pictures.

Importing this package loads no torch; the names below are loaded when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_accel.engine import Engine
    from lib_accel.hosts.diffusers import Handle, accelerate
    from lib_accel.options import Options

__version__ = "0.1.0"
__all__ = ["Engine", "Handle", "Options", "__version__", "accelerate"]

_HOMES = {
    "Engine": "lib_accel.engine",
    "Handle": "lib_accel.hosts.diffusers",
    "Options": "lib_accel.options",
    "accelerate": "lib_accel.hosts.diffusers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
