"""`python -m lib_accel bench --suite gpu`: its flags, what they may be, and what is printed."""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lib_accel.bench.arguments import ArgumentsError, at_least
from lib_accel.bench.gpu.parts import ALL, PARTS

LIMIT_S = 540

# Flags of this suite alone.
FLAGS = ("part", "dry-run", "retry", "limit-s", "row-s")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that only this suite knows."""
    group = parser.add_argument_group("with --suite gpu")
    group.add_argument(
        "--part",
        action="append",
        choices=[*PARTS, ALL],
        metavar="NAME",
        help=f"what is measured; may be repeated: {', '.join(PARTS)}, or {ALL}. Rows that --json has stay "
        "as they are",
    )
    group.add_argument(
        "--dry-run",
        action="store_const",
        const=True,
        help="try each row at a tiny size on the CPU: shows that all works, measures nothing",
    )
    group.add_argument(
        "--retry", action="store_const", const=True, help="measure rows of --json again that failed"
    )
    group.add_argument(
        "--limit-s",
        type=int,
        metavar="N",
        help=f"begin no row that might end later than that, in seconds (default: {LIMIT_S})",
    )
    group.add_argument(
        "--row-s", type=int, metavar="N", help="give up a row after so many seconds (default: by part)"
    )


def _at_least_one(arguments: argparse.Namespace) -> None:
    for flag in ("limit-s", "row-s"):
        value = getattr(arguments, flag.replace("-", "_"))
        if value is not None:
            at_least(1, **{flag: value})


def bench_gpu(arguments: argparse.Namespace) -> int:
    """Measures the parts that are asked for; 0 if the file has all their rows now, 1 if some are left."""
    if not arguments.part:
        raise ArgumentsError(f"--suite gpu needs --part NAME: one of {', '.join(PARTS)}, or {ALL}")
    _at_least_one(arguments)
    if arguments.retry and arguments.json is None:
        raise ArgumentsError("--retry needs --json FILE, whose failed rows are measured again")
    names = list(PARTS) if ALL in arguments.part else list(dict.fromkeys(arguments.part))
    with _quiet():
        from lib_accel.bench.gpu.file import RowFile
        from lib_accel.bench.gpu.suite import gpu_suite, missing_rows
        from lib_accel.bench.progress import Progress

        plan = _plan(arguments)
        file = RowFile(arguments.json, _about(plan, is_dry=bool(arguments.dry_run)))
        if arguments.retry:
            file.forget_failures()
        with Progress(sum(len(missing_rows(name, file)) for name in names)) as progress:
            is_whole = gpu_suite(names, plan, file, progress.begin)
    _show(file.figures, arguments)
    if not is_whole:
        print("rows are left: the same command goes on with them")
    return 0 if is_whole else 1


def _plan(arguments: argparse.Namespace) -> Any:
    from lib_accel.bench.gpu.models import gpu_or_dry
    from lib_accel.bench.gpu.sides import Makers
    from lib_accel.bench.gpu.suite import Plan
    from lib_accel.bench.gpu.timing import DRY, QUICK

    where = gpu_or_dry(is_dry=bool(arguments.dry_run))
    plan = Plan(where, limit_s=arguments.limit_s or LIMIT_S, row_s=arguments.row_s)
    if arguments.quick:
        plan = replace(plan, pace=QUICK)
    if arguments.dry_run:
        plan = replace(plan, pace=DRY, makers=Makers(lambda condition: _as_traced, "eager"))
    return plan


def _as_traced(module: Any, inputs: Any) -> Any:
    """A graph as it was traced: compiling toys takes minutes, and says nothing of a GPU."""
    return module.forward


def _about(plan: Any, *, is_dry: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from lib_accel.bench.environment import environment, gpu_environment
    from lib_accel.bench.gpu.file import SUITE
    from lib_accel.bench.gpu.floors import BYTES_PER_S, FLOP_PER_S, GPU
    from lib_accel.bench.gpu.table import REMARKS

    device = plan.where.device
    return {
        **environment(device),
        **gpu_environment(device),
        "suite": SUITE,
        "dry_run": is_dry,
        "dtype": str(plan.where.dtype).removeprefix("torch."),
        "autocast": plan.where.autocast,
        "pace": asdict(plan.pace),
        "floors": {"gpu": GPU, "flop_per_s": FLOP_PER_S, "bytes_per_s": BYTES_PER_S},
        "remarks": list(REMARKS),
    }


def _show(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    from lib_accel.bench.gpu.table import gpu_table

    print(gpu_table(figures))
    if arguments.json is None:
        return
    print(f"written: {arguments.json}")
    picture = arguments.json.with_suffix(".png")
    try:
        from lib_accel.bench.gpu.plot import save_plot
    except ImportError as error:
        print(f"no picture: {error}")
        return
    if save_plot(figures, picture):
        print(f"written: {picture}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that other packages remark on is printed inside the block; what fails is."""
    with warnings.catch_warnings():
        for kind in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        yield
