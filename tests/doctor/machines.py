"""Machines made of facts alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lib_accel.doctor.facts import (
    Cache,
    Compiler,
    Devices,
    Driver,
    Gpu,
    Interpreter,
    Package,
    Trial,
    Webui,
)

H100 = Gpu("NVIDIA H100", (9, 0), 81559)
CUDA_ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "compute_120")

_EVERYTHING = {
    "torch": Package("2.13.0"),
    "triton": Package("3.7.1"),
    "xformers": Package("0.0.35"),
    "diffusers": Package("0.42.1"),
    "transformers": Package("5.23.0"),
    "accelerate": Package("1.15.0"),
    "peft": Package("0.21.2"),
    "safetensors": Package("0.8.0"),
}


@dataclass(frozen=True, kw_only=True)
class FakeMachine:
    """facts.Machine with a value for each fact."""

    interpreter: Interpreter
    packages: Mapping[str, Package]
    devices: Devices | None
    driver: Driver
    compiler: Compiler
    cache: Cache
    webui: Webui
    trials: tuple[Trial, ...]

    def on(self, system: str) -> FakeMachine:
        return replace(self, interpreter=replace(self.interpreter, system=system))

    def having(self, **packages: Package) -> FakeMachine:
        return replace(self, packages={**self.packages, **packages})


# A Linux machine where everything is as it should be.
GOOD = FakeMachine(
    interpreter=Interpreter((3, 11, 7), "CPython", "Linux", "x86_64"),
    packages=_EVERYTHING,
    devices=Devices("CUDA 13.0", (H100,), CUDA_ARCHITECTURES, cpu="AVX512", threads=8),
    driver=Driver(is_present=True),
    compiler=Compiler("g++", "12.2.0", installer="apt-get"),
    cache=Cache("~/.cache/sd-webui-accel", "XDG_CACHE_HOME", exists=True, is_writable=True),
    webui=Webui("--webui", version="1.10.1", has_controlnet=True, has_us=True),
    trials=(Trial("cpu", "float32", 0.0, 1e-5), Trial("cuda", "float16", 0.0, 1e-2)),
)
NO_GPU = replace(GOOD, devices=Devices("CPU", cpu="AVX512", threads=8), driver=Driver())
BARE = replace(
    GOOD,
    packages=dict.fromkeys(_EVERYTHING, Package()),
    devices=None,
    driver=Driver(),
    compiler=Compiler(),
    webui=Webui(),
    trials=(),
)


class BrokenMachine:
    """A machine that raises whatever it is asked for."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def _raise(self) -> None:
        raise self._error

    interpreter = packages = devices = driver = compiler = cache = webui = trials = property(_raise)
