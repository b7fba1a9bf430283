"""What we may find installed: the oldest versions that were tried, and why what is there cannot be used.

Nothing is imported here to find out: the installer's records are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata

OLDEST_PYTHON = (3, 10)

# What runs a diffusers pipeline; pyproject.toml's extra `diffusers` asks for the same.
OLDEST: Mapping[str, str] = {
    "torch": "2.1",
    "diffusers": "0.30.3",
    "transformers": "4.44.2",
    "accelerate": "0.33",
    "peft": "0.12",
    "safetensors": "0.4.1",
}

# Modules that some platforms get from a package of another name.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "triton": ("triton", "triton-windows", "pytorch-triton", "pytorch-triton-rocm", "pytorch-triton-xpu")
}


def installed_version(module: str) -> str | None:
    """The installed version of the package that brings `module`, None if there is none."""
    for package in _PACKAGES.get(module, (module,)):
        try:
            return str(metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return None


def is_older(version: str, than: str) -> bool:
    """Whether `version` comes before `than`, by their release numbers alone ("2.13.0+cpu" is 2.13.0)."""
    ours, theirs = _release(version), _release(than)
    length = max(len(ours), len(theirs))
    return ours + [0] * (length - len(ours)) < theirs + [0] * (length - len(theirs))


def why_not(module: str, version: str | None) -> str | None:
    """Why this version of a module cannot be relied on, None if it can; None as a version: not installed."""
    if version is None:
        return f"{module} is not installed"
    oldest = OLDEST.get(module)
    if oldest is not None and is_older(version, oldest):
        return f"{module} {version} is older than {oldest}, the oldest that was tried"
    return None


def _release(version: str) -> list[int]:
    numbers = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in numbers[0].split(".")] if numbers else []
