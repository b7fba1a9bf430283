"""What the suite of GPUs measures: parts that one command runs, their cases, and the sides of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lib_accel.bench.gpu import operators_shapes
from lib_accel.bench.gpu.kernels_shapes import SHAPES

# Sides by name, of sides.SIDES.
STOCK = "eager SDPA"
DIRECT, DIRECT_GRAPH = "ours, direct", "ours, direct, graphs"
AUTO = "ours, auto"  # the options as they are before anybody changes them: operators are measured, too
AUTO_SINGLE = "ours, auto, kernel by kernel"  # the same choices where no graph hides what is launched
COMPILED, COMPILED_GRAPH = "ours, compiled", "ours, compiled, graphs"
XFORMERS = "eager xformers"
BLOCKS = "torch.compile, transformer blocks"
WHOLE, OVERHEAD, AUTOTUNE = (
    f"torch.compile, {mode}" for mode in ("default", "reduce-overhead", "max-autotune")
)

# Ways to compute one kernel's work, against the plain torch of blocks.
KERNEL, KERNEL_COMPILED = "kernel", "torch.compile"

# How rows of a part are measured, by name: of suite.py.
SPEED, PROFILE, SWITCH = "speed", "profile", "switch"
KERNELS, TUNING = "kernels", "tuning"
OPERATORS, NEAR, WARM_UP, PIECES = "operators", "operators-near", "warm-up", "pieces"

# What toys are given at most: pixels of a picture's side, and pictures.
DRY_PX, DRY_PICTURES = 64, 2


@dataclass(frozen=True)
class Case:
    """One thing that is called: a model of models.FORMS, and with what; or a kernel or operator by name."""

    name: str
    model: str
    side_px: int = 512
    pictures: int = 1  # a UNet and a text encoder are called with two a picture, for guidance
    networks: int = 0
    controls: int = 0


@dataclass(frozen=True)
class Part:
    """Cases that one command measures, each by each of some sides."""

    cases: tuple[Case, ...]
    sides: tuple[str, ...]
    row_s: int = 120  # most that a row may take
    kind: str = SPEED
    is_cold: bool = False  # what is compiled is compiled anew, so that the seconds are those of a first use

    def rows(self) -> list[tuple[Case, str]]:
        """All of them, those of one case together."""
        return [(case, side) for case in self.cases for side in self.sides]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _pictures(model: str, side_px: int, *counts: int) -> tuple[Case, ...]:
    return tuple(
        Case(f"{model} {side_px}, {_counted(n, 'picture')}", model, side_px, pictures=n) for n in counts
    )


_OURS = (STOCK, DIRECT, DIRECT_GRAPH)
_OURS_AND_AUTO = (*_OURS, AUTO)
_SD15, _SDXL = Case("sd15 512", "sd15"), Case("sdxl 1024", "sdxl", 1024)
_SD15_1024 = Case("sd15 1024", "sd15", 1024)
_VAES = tuple(Case(f"vae {side}", "vae", side) for side in (512, 1024))
_COMPILE_S = 220
_MEASURE_S = 250  # of contests of operators, some of which compile kernels; what is left is for --retry
_LARGE = (_VAES[1], Case("vae 2048", "vae", 2048), Case("sdxl 2048", "sdxl", 2048))
# Ways to cut, of pieces_rows.CUTS.
_CUTS = ("from 64 MiB", "from 256 MiB", "as where memory ran out")
_KERNELS = tuple(Case(name, shape.kernel) for name, shape in SHAPES.items())
_OPERATORS = tuple(Case(name, shape.operator) for name, shape in operators_shapes.SHAPES.items())
_NEAR = tuple(Case(name, near.tuned.operator) for name, near in operators_shapes.NEAR.items())

# What AUTO is to find measured in other parts; for ControlNets that is what it is for SD1.5.
_WARM_UPS = (
    *_pictures("sd15", 512, 1),
    *_pictures("sdxl", 1024, 1),
    *reversed(_VAES),
    *_pictures("sd15", 512, 2, 4, 8),
    *_pictures("sdxl", 1024, 2),
    _SD15_1024,
)


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "warm-up": Part(_WARM_UPS, (AUTO,), row_s=_MEASURE_S, kind=WARM_UP),
        "sd15": Part(_pictures("sd15", 512, 1, 2, 4, 8), _OURS_AND_AUTO),
        "sd15-sizes": Part(tuple(Case(f"sd15 {side}", "sd15", side) for side in (768, 1024)), _OURS),
        "sdxl": Part(_pictures("sdxl", 1024, 1, 2), _OURS_AND_AUTO),
        "loras": Part(
            tuple(Case(f"sd15 512, {_counted(n, 'LoRA')}", "sd15", networks=n) for n in (0, 1, 4, 16)), _OURS
        ),
        "switches": Part(
            tuple(
                Case(f"{model}, {_counted(n, 'LoRA')}", model, networks=n)
                for model in ("sd15", "sdxl")
                for n in (1, 4, 16)
            ),
            ("switch",),
            kind=SWITCH,
        ),
        "controlnet": Part(
            tuple(Case(f"sd15 512, {_counted(n, 'ControlNet')}", "sd15", controls=n) for n in (0, 1, 2)),
            _OURS_AND_AUTO,
        ),
        "vae": Part(_VAES, _OURS_AND_AUTO),
        "text": Part((Case("text, 77 tokens", "text"),), _OURS_AND_AUTO),
        "compiled": Part((_SD15,), (STOCK, COMPILED, COMPILED_GRAPH), row_s=_COMPILE_S, is_cold=True),
        "rivals": Part((_SD15,), (STOCK, XFORMERS, BLOCKS), row_s=_COMPILE_S, is_cold=True),
        "rivals-default": Part((_SD15,), (WHOLE,), row_s=_COMPILE_S, is_cold=True),
        "rivals-overhead": Part((_SD15,), (OVERHEAD,), row_s=_COMPILE_S, is_cold=True),
        "rivals-autotune": Part((_SD15,), (AUTOTUNE,), row_s=_COMPILE_S, is_cold=True),
        "profile": Part((_SD15, _SDXL, _VAES[1]), (*_OURS_AND_AUTO, AUTO_SINGLE), kind=PROFILE),
        "operators": Part(_OPERATORS, ("contest",), kind=OPERATORS),
        "operators-near": Part(_NEAR, ("near",), kind=NEAR),
        "kernels": Part(_KERNELS, (KERNEL, KERNEL_COMPILED), kind=KERNELS),
        "kernels-tuning": Part(_KERNELS, ("neighbours",), kind=TUNING),
        "pieces": Part(_LARGE, _CUTS, kind=PIECES),
        "memory": Part((_SD15, _SD15_1024, _SDXL, _VAES[1]), _OURS_AND_AUTO),
    }
)
ALL = "all"
