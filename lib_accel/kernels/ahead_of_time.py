"""Compiles kernels for a GPU that need not be here, and reads what they need of it.

Made for the Triton that requirements-dev.txt pins: its compiler's own interface changes between versions.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib_accel.kernels.support import programs
from lib_accel.kernels.variants import Variant

# Compute capabilities: Turing, Ampere (data centre, then consumer), Ada, Hopper, Blackwell.
CAPABILITIES = (75, 80, 86, 89, 90, 100)

# What a program may use of a processor's shared memory without asking for more than the default.
SHARED_LIMIT = 48 * 1024

_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
}

# Sizes that are 1 for some picture, weight or batch. Triton makes such an argument a constant.
_MAY_BE_ONE = ("pixels", "width", "chunks", "rows", "inner", "height", "split", "channels")

# A group of these models' norms has 4 to 80 channels, mostly 10, 20 or 40; and any number of chunks.
_SELDOM_ALIGNED = ("width", "chunks")


class Needs(NamedTuple):
    """What one program takes of a GPU."""

    registers: int  # a thread
    spilled: int  # bytes a thread that did not fit into registers
    shared: int  # bytes


class Built(NamedTuple):
    """A variant as compiled for one capability."""

    variant: Variant
    capability: int
    needs: Needs


def can_build(variant: Variant, capability: int) -> bool:
    """Whether a GPU of that capability has the variant's dtypes: bfloat16 came with 8.0."""
    return capability >= 80 or not variant.has_bfloat16


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
    constants = dict(variant.constants)
    if variant.sizes == "one":
        constants |= {name: 1 for name in kernel.arg_names if name in _MAY_BE_ONE}
    signature = {name: _type(name, variant, constants) for name in kernel.arg_names}
    odd = _SELDOM_ALIGNED if variant.room == "group_norm" else ()
    aligned = [
        name
        for name, kind in signature.items()
        if kind.startswith("*") or (kind == "i32" and variant.sizes == "aligned" and name not in odd)
    ]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": variant.warps})


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
