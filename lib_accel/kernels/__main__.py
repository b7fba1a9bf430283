"""`python -m lib_accel.kernels`: compiles every kernel without a GPU, and prints what each needs of one.

`python -m lib_accel.kernels tables` writes the predicted tables of GPUs instead, by what is compiled.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib_accel.kernels.ahead_of_time import CAPABILITIES, SHARED_LIMIT, Built, build, is_heavy
from lib_accel.kernels.gpus import GPUS
from lib_accel.kernels.order import FOLDER
from lib_accel.kernels.support import why_not_triton
from lib_accel.kernels.tabulate import write_tables
from lib_accel.kernels.variants import variants

NEEDS, TABLES = "needs", "tables"


def main(argv: Sequence[str] | None = None) -> int:
    """Does what is asked; returns 1 if a kernel spills or takes too much shared memory, 2 without Triton."""
    parser = argparse.ArgumentParser(prog="python -m lib_accel.kernels", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=(NEEDS, TABLES),
        default=NEEDS,
        help=f"{NEEDS}: prints registers, spills and shared memory; {TABLES}: writes the tables of GPUs",
    )
    parser.add_argument(
        "--capability",
        type=int,
        nargs="+",
        choices=CAPABILITIES,
        default=CAPABILITIES,
        help="compute capabilities to compile for, times ten (default: all; takes minutes the first time)",
    )
    parser.add_argument(
        "--to", type=Path, default=FOLDER, help="where tables are written (default: where they are read)"
    )
    arguments = parser.parse_args(argv)
    if reasons := why_not_triton():
        print(f"kernels: {'; '.join(reasons)}; python -m pip install triton brings it", file=sys.stderr)
        return 2
    if arguments.what == TABLES:
        gpus = [gpu for gpu in GPUS if gpu.capability in arguments.capability]
        for file in write_tables(arguments.to, gpus):
            print(f"written: {file}", flush=True)
        return 0
    return _print_needs(arguments.capability)


def _print_needs(capabilities: Sequence[int]) -> int:
    print("capability  registers  spilled  shared  kernel")
    heavy = 0
    for capability in capabilities:
        for built in build(variants(), capability):
            print(line(built), flush=True)
            heavy += is_heavy(built)
    print(f"{heavy} spill, or take more shared memory than they should: {SHARED_LIMIT} bytes, pipelines more")
    return 1 if heavy else 0


def line(built: Built) -> str:
    """A row of the table."""
    needs, variant = built.needs, built.variant
    name = f"{variant.room}.{variant.kernel}: {variant.label}"
    return f"{built.capability:10}  {needs.registers:9}  {needs.spilled:7}  {needs.shared:6}  {name}"


if __name__ == "__main__":
    sys.exit(main())
