"""Gathers the facts of the machine that we run on, each when it is first asked for."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from lib_accel.doctor.compiler import find_compiler
from lib_accel.doctor.direct import try_direct
from lib_accel.doctor.facts import Cache, Compiler, Devices, Driver, Gpu, Interpreter, Package, Trial, Webui
from lib_accel.doctor.imports import find_packages
from lib_accel.doctor.webui import VARIABLE, find_webui

_OUR_FOLDER = Path(__file__).absolute().parents[2]
_CACHE_NAME = "sd-webui-accel"


class LiveMachine:
    """facts.Machine for this machine. Changes nothing on it."""

    def __init__(self, webui: str | None = None) -> None:
        """`webui`: the folder that `--webui` named."""
        self._webui = webui

    @cached_property
    def interpreter(self) -> Interpreter:
        return Interpreter(
            version=sys.version_info[:3],
            implementation=platform.python_implementation(),
            system=platform.system(),
            architecture=platform.machine(),
        )

    @cached_property
    def packages(self) -> Mapping[str, Package]:
        return find_packages()

    @cached_property
    def devices(self) -> Devices | None:
        return find_devices() if self._can_import_torch else None

    @cached_property
    def driver(self) -> Driver:
        return find_driver(self.interpreter.system, os.environ)

    @cached_property
    def compiler(self) -> Compiler:
        return find_compiler(os.environ)

    @cached_property
    def cache(self) -> Cache:
        return find_cache(self.interpreter.system, os.environ, Path.home())

    @cached_property
    def webui(self) -> Webui:
        return find_webui(self._webui, os.environ.get(VARIABLE), _OUR_FOLDER)

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        return try_direct() if self._can_import_torch else ()

    @property
    def _can_import_torch(self) -> bool:
        torch = self.packages["torch"]
        return torch.version is not None and torch.fault is None


def find_devices() -> Devices:
    """What torch can compute on. Warnings of torch become the complaint."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    capability = getattr(torch.backends.cpu, "get_cpu_capability", None)  # since torch 2.2
    return Devices(
        build=_build(torch.version.cuda, torch.version.hip),
        gpus=tuple(Gpu(gpu.name, (gpu.major, gpu.minor), gpu.total_memory // 2**20) for gpu in gpus),
        built_for=tuple(torch.cuda.get_arch_list()) if gpus else (),
        others=tuple(_unsupported()),
        cpu=str(capability()) if capability else "",
        threads=torch.get_num_threads(),
        complaint=" ".join(str(caught[0].message).split()) if caught else None,
    )


def _build(cuda: str | None, hip: str | None) -> str:
    if hip:
        return f"ROCm {hip}"
    return f"CUDA {cuda}" if cuda else "CPU"


def _unsupported() -> Iterator[str]:
    """Kinds of device that torch can use here and we cannot."""
    import torch

    if torch.backends.mps.is_available():
        yield "mps"
    if hasattr(torch, "xpu") and torch.xpu.is_available():  # since torch 2.3
        yield "xpu"


def find_driver(system: str, environment: Mapping[str, str]) -> Driver:
    """Signs of NVIDIA's driver outside torch."""
    if system == "Windows":
        library = Path(environment.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll")
        is_present = library.is_file()
    else:
        # Windows' driver serves Linux inside WSL, which has no /proc entry.
        is_present = Path("/proc/driver/nvidia/version").exists() or Path("/dev/dxg").exists()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return Driver(
        is_present=is_present or shutil.which("nvidia-smi") is not None,
        hides_gpus=visible is not None and visible.strip() in ("", "-1"),
    )


def find_cache(system: str, environment: Mapping[str, str], home: Path) -> Cache:
    """Where the system keeps what programs can make again."""
    setting, default = {
        "Windows": ("LOCALAPPDATA", ("AppData", "Local")),
        "Darwin": ("XDG_CACHE_HOME", ("Library", "Caches")),
    }.get(system, ("XDG_CACHE_HOME", (".cache",)))
    chosen = environment.get(setting)
    parent = Path(chosen) if chosen else home.joinpath(*default)
    shown = f"${setting}" if chosen else "/".join(("~", *default))
    folder = parent / _CACHE_NAME
    existing = next((each for each in (folder, *folder.parents) if each.exists()), None)
    return Cache(
        folder=f"{shown}/{_CACHE_NAME}",
        setting=setting,
        exists=folder.exists(),
        is_writable=existing is not None and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
    )
