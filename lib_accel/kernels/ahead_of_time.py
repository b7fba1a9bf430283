"""Compiles kernels for a GPU that need not be here, and reads what they need of it.

Made for the Triton that requirements-dev.txt pins: its compiler's own interface changes between versions.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from lib_accel.kernels.predict import Needs
from lib_accel.kernels.support import programs
from lib_accel.kernels.variants import Variant

# Compute capabilities: Turing, Ampere (data centre, then consumer), Ada, Hopper, Blackwell (the same two).
CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)

# What a program may use of a processor's shared memory without asking for more than the default.
SHARED_LIMIT = 48 * 1024

# What it may ask for, in bytes: a pipeline of loads lies there.
LARGEST_SHARED: Mapping[int, int] = MappingProxyType(
    {
        75: 64 * 1024,
        80: 163 * 1024,
        86: 99 * 1024,
        89: 99 * 1024,
        90: 227 * 1024,
        100: 227 * 1024,
        120: 99 * 1024,
    }
)

# Bytes that a thread may spill. For 12.0 the assembler does so to have one more program on a processor.
_SPILLED = {120: 8}

_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
}

# Sizes that are 1 for some picture, weight or batch. Triton makes such an argument a constant.
_MAY_BE_ONE = ("pixels", "width", "chunks", "rows", "columns", "inner", "height", "split", "channels")

# By room. A group of these models' norms has 4 to 80 channels, mostly 10, 20 or 40; and any number of chunks.
_SELDOM_ALIGNED = {"group_norm": ("width", "chunks")}

# By room, what `why_not` asks to divide by 16.
_ALWAYS_ALIGNED = {"linear_geglu": ("inner", "channels")}


class Built(NamedTuple):
    """A variant as compiled for one capability."""

    variant: Variant
    capability: int
    needs: Needs


def can_build(variant: Variant, capability: int) -> bool:
    """Whether a GPU of that capability takes the variant and has its dtypes: bfloat16 came with 8.0."""
    is_meant = not variant.capabilities or capability in variant.capabilities
    return is_meant and (capability >= 80 or not variant.has_bfloat16)


def is_heavy(built: Built) -> bool:
    """Whether it spills, or takes more shared memory than it should: it should not be shipped like that."""
    limit = LARGEST_SHARED[built.capability] if built.variant.stages else SHARED_LIMIT
    return built.needs.spilled > _SPILLED.get(built.capability, 0) or built.needs.shared > limit


def build(variants: Iterable[Variant], capability: int) -> Iterator[Built]:
    """Compiles each variant that a GPU of that capability can run, down to its machine code."""
    for variant in variants:
        if can_build(variant, capability):
            compiled = _compile(variant, capability)
            yield Built(variant, capability, _needs(compiled.asm["cubin"], compiled.metadata.shared))


def _compile(variant: Variant, capability: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(programs(variant.room), variant.kernel)
    always = _ALWAYS_ALIGNED.get(variant.room, ())
    constants = dict(variant.constants)
    if variant.sizes == "one":
        ones = [name for name in _MAY_BE_ONE if name in kernel.arg_names and name not in always]
        constants |= dict.fromkeys(ones, 1)
    signature = {name: _type(name, variant, constants) for name in kernel.arg_names}
    seldom = _SELDOM_ALIGNED.get(variant.room, ())
    numbers = {name for name, kind in signature.items() if kind == "i32"}
    aligned = {name for name, kind in signature.items() if kind.startswith("*")} | numbers.intersection(
        always
    )
    if variant.sizes == "aligned":
        aligned |= numbers.difference(seldom)
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": variant.warps}
    if variant.stages:
        options["num_stages"] = variant.stages
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _type(name: str, variant: Variant, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in variant.pointers:
        return _TYPES[variant.pointers[name]]
    return "fp32" if name == "eps" else "i32"


def _needs(cubin: bytes, shared: int) -> Needs:
    """Read by the tool that comes with Triton. All that is on a thread's stack is what it spilled."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return Needs(usage["REG"], usage["STACK"] + usage["LOCAL"], shared)
