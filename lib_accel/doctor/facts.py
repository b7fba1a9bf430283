"""What there is to know about a machine before anything is judged: plain values, gathered in `live`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs us."""

    version: tuple[int, int, int]
    implementation: str  # "CPython"
    system: str  # "Linux", "Windows" or "Darwin"
    architecture: str  # "x86_64"


@dataclass(frozen=True)
class Package:
    """A package that something of ours may use."""

    version: str | None = None  # None: not installed
    fault: str | None = None  # why it cannot be used although it is installed


@dataclass(frozen=True)
class Gpu:
    """One device of torch's "cuda", which AMD's are too."""

    name: str
    capability: tuple[int, int]
    memory_mib: int


@dataclass(frozen=True)
class Devices:
    """What torch can compute on."""

    build: str  # what torch was built for: "CPU", "CUDA 13.0", "ROCm 6.4"
    gpus: tuple[Gpu, ...] = ()
    built_for: tuple[str, ...] = ()  # architectures of a CUDA build: "sm_90", "compute_90"
    others: tuple[str, ...] = ()  # device types that we do not support, "mps" for example
    cpu: str = ""  # the vector instructions torch uses
    threads: int = 1
    complaint: str | None = None  # what torch said when it was asked for GPUs


@dataclass(frozen=True)
class Driver:
    """The driver of NVIDIA's GPUs, as far as it can be seen without torch."""

    is_present: bool = False
    hides_gpus: bool = False  # CUDA_VISIBLE_DEVICES names no GPU


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler that would be used."""

    name: str | None = None  # None: none found
    version: str = ""
    fault: str | None = None  # why a trivial program did not come out of it
    is_chosen: bool = False  # by the variable CXX
    installer: str | None = None  # the system's package manager


@dataclass(frozen=True)
class Cache:
    """The folder for what is worth keeping between starts."""

    folder: str  # as a person would write it: "~/.cache/sd-webui-accel"
    setting: str  # the environment variable that moves it
    exists: bool
    is_writable: bool  # or could be made, if it does not exist


@dataclass(frozen=True)
class Webui:
    """A webui's checkout, if one was named or is around us."""

    found_by: str | None = None  # None: none was named
    lacks: tuple[str, ...] = ()  # files without which it is no webui
    version: str | None = None
    is_forge: bool = False
    has_controlnet: bool = False
    has_us: bool = False  # this extension is among its extensions


@dataclass(frozen=True)
class Trial:
    """One of our functions against plain torch on one device."""

    device: str
    dtype: str
    difference: float  # largest, of values around 1
    tolerance: float


class Machine(Protocol):
    """All facts. Asking for one may raise anything: what could not be found out is a finding too."""

    @property
    def interpreter(self) -> Interpreter: ...
    @property
    def packages(self) -> Mapping[str, Package]: ...
    @property
    def devices(self) -> Devices | None:
        """None if torch cannot be imported."""

    @property
    def driver(self) -> Driver: ...
    @property
    def compiler(self) -> Compiler: ...
    @property
    def cache(self) -> Cache: ...
    @property
    def webui(self) -> Webui: ...
    @property
    def trials(self) -> tuple[Trial, ...]:
        """Empty if torch cannot be imported."""
