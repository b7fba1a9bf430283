"""`python -m lib_accel.kernels`: compiles every kernel without a GPU, and prints what each needs of one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lib_accel.kernels.ahead_of_time import CAPABILITIES, SHARED_LIMIT, Built, build, is_heavy
from lib_accel.kernels.support import why_not_triton
from lib_accel.kernels.variants import variants


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a kernel spills or takes too much shared memory, 2 without Triton."""
    parser = argparse.ArgumentParser(prog="python -m lib_accel.kernels", description=__doc__)
    parser.add_argument(
        "--capability",
        type=int,
        nargs="+",
        choices=CAPABILITIES,
        default=CAPABILITIES,
        help="compute capabilities to compile for, times ten (default: all; takes minutes the first time)",
    )
    arguments = parser.parse_args(argv)
    if reasons := why_not_triton():
        print(f"kernels: {'; '.join(reasons)}; python -m pip install triton brings it", file=sys.stderr)
        return 2
    print("capability  registers  spilled  shared  kernel")
    heavy = 0
    for capability in arguments.capability:
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
