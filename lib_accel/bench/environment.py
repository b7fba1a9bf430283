"""What figures were measured on, without the machine's name, its user or any path."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lib_accel import __version__

PACKAGES = ("diffusers", "transformers", "peft")
_ROOT = Path(__file__).resolve().parents[2]
_CPU_INFO = Path("/proc/cpuinfo")


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, operating system, versions and commit, as plain values; what cannot be found out is None."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_gib": _ram_gib(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "device": device.type,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: _version(package) for package in PACKAGES},
        "lib_accel": __version__,
        **commit(_ROOT),
    }


def gpu_environment(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver, its limits, and versions of what computes on it; empty where there is none."""
    if device.type != "cuda":
        return {}
    told = torch.cuda.get_device_properties(device)
    return {
        "gpu_memory_mib": told.total_memory // 2**20,
        "gpu_multiprocessors": told.multi_processor_count,
        "compute_capability": f"{told.major}.{told.minor}",
        "cuda": torch.version.cuda,
        "cudnn": _cudnn(),
        **{package: _version(package) for package in ("triton", "einops", "xformers")},
        **gpu_clocks(device),
    }


def _cudnn() -> int | None:
    ask: Callable[[], int | None] = torch.backends.cudnn.version
    return ask()


# What of a GPU is asked, by the name of a figure; nothing of it is ever set.
_QUERIES = {
    "driver": "driver_version",
    "power_limit_w": "power.limit",
    "power_limit_default_w": "power.default_limit",
    "power_w": "power.draw",
    "clock_mhz": "clocks.sm",
    "clock_max_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "memory_clock_max_mhz": "clocks.max.mem",
    "temperature_c": "temperature.gpu",
    "performance_state": "pstate",
}


def gpu_clocks(device: torch.device) -> dict[str, Any]:
    """What nvidia-smi says of driver, power and clocks now; None for what it does not, {} without a GPU."""
    if device.type != "cuda":
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERIES.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [*command, f"--id={_smi_id(device)}"], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(_QUERIES)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if len(values) != len(_QUERIES):
        return dict.fromkeys(_QUERIES)
    return {name: _number(value) for name, value in zip(_QUERIES, values, strict=True)}


def _smi_id(device: torch.device) -> str:
    """How nvidia-smi knows the device: numbers of torch's count only those that this process may see."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return str(device.index or 0) if uuid is None else f"GPU-{uuid}"


def _number(value: str) -> float | str | None:
    if value.startswith("["):  # "[N/A]" and its like
        return None
    try:
        return float(value)
    except ValueError:
        return value


def cpu_name() -> str:
    """The processor as it calls itself."""
    if _CPU_INFO.is_file():
        named = re.search(r"^model name\s*: (.+)$", _CPU_INFO.read_text("utf-8"), re.MULTILINE)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine()


def commit(root: Path) -> dict[str, Any]:
    """The commit that is checked out at `root` and whether files differ from it; None for both elsewhere."""
    unknown = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return unknown
    head, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return unknown if head is None else {"commit": head, "dirty": bool(changes)}


def _git(root: Path, *words: str) -> str | None:
    # Without optional locks `status` writes nothing, so it never disturbs a git command that runs beside it.
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ram_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
