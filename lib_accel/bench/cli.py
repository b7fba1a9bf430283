"""`python -m lib_accel bench`: stock diffusers against ours, in one process, in turn."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lib_accel.bench.arguments import ArgumentsError, Parser, at_least, told, writable
from lib_accel.bench.gpu.cli import FLAGS as GPU_FLAGS
from lib_accel.bench.gpu.cli import add_flags, bench_gpu
from lib_accel.bench.stats import never_slower
from lib_accel.bench.suites import FULL, QUICK, SUITES
from lib_accel.bench.table import HEADINGS, aligned, lora_lines, row

LORA, GRAPHS, GPU, MEMORY = "lora", "graphs", "gpu", "memory"

# Of sizes.SIZES and graphs_models.WIDTHS, which are not imported to read the command line.
LORA_SIZES = ("tiny", "sd15", "sdxl")
GRAPHS_SIZES = ("tiny", "half", "sd15")

# Flags that not every suite knows, and the suites that do.
_SUITES_OF = {
    "size": (LORA, GRAPHS),
    "loras": (LORA,),
    "rounds": (LORA,),
    "plot": (LORA,),
    "without-peft": (LORA,),
    **dict.fromkeys(GPU_FLAGS, (GPU,)),
}


def main(argv: list[str]) -> int:
    """Measures what the command line asks for; 2, with one line on stderr, if it cannot."""
    return told(_bench, argv, name="bench")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m lib_accel bench", description="Times stock diffusers and ours in turn.")
    parser.add_argument(
        "--suite",
        choices=[*sorted(SUITES), LORA, GRAPHS, MEMORY, GPU],
        default="cpu",
        help="which cases: cpu, steps of models; lora, kinds of networks and switches; graphs, what "
        "compiling costs and brings; memory, what large pictures hold; gpu, full-size models on an NVIDIA "
        "GPU (default: cpu)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write all figures to")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a few cases, {QUICK.pairs} pairs: shows that all works, not how fast it is",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads (default: 1)")
    parser.add_argument_group("with --suite lora or graphs").add_argument(
        "--size",
        action="append",
        choices=list(dict.fromkeys((*LORA_SIZES, *GRAPHS_SIZES))),
        help="of models; may be repeated (lora: tiny, sd15 or sdxl; default: sd15 and sdxl, with --quick "
        "tiny. graphs: tiny, half or sd15; default: tiny and half, blocks one by one of sd15)",
    )
    of_lora = parser.add_argument_group("with --suite lora")
    of_lora.add_argument(
        "--loras",
        action="append",
        type=int,
        metavar="N",
        help="how many networks at once; may be repeated (default: 1, 4 and 16)",
    )
    of_lora.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="times that each is measured (default: 5; peft's, and all of 16 LoRAs, never more than 3)",
    )
    of_lora.add_argument(
        "--without-peft",
        action="store_const",
        const=True,
        help="leave out peft, whose merges take hours at sdxl",
    )
    of_lora.add_argument(
        "--plot", type=Path, metavar="FILE", help="picture (default: beside --json, as .png)"
    )
    of_lora.add_argument(
        "--memory-gib",
        type=int,
        default=10,
        metavar="N",
        help="leave out what would need more memory, mapped files not counted (default: 10)",
    )
    add_flags(parser)
    return parser


def _bench(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    at_least(1, threads=arguments.threads)
    at_least(1, **{"memory-gib": arguments.memory_gib})
    if arguments.json:
        writable(arguments.json, "--json")
    _refuse_flags_of_others(arguments)
    if arguments.suite == LORA:
        return _bench_lora(arguments)
    if arguments.suite == GRAPHS:
        return _bench_graphs(arguments)
    if arguments.suite == MEMORY:
        return _bench_memory(arguments)
    if arguments.suite == GPU:
        with _threads(arguments.threads):
            return bench_gpu(arguments)
    with _threads(arguments.threads):
        report = _measure(arguments.suite, quick=arguments.quick)
    _print(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        print(f"written: {arguments.json}")
    return 0


def _refuse_flags_of_others(arguments: argparse.Namespace) -> None:
    for flag, suites in _SUITES_OF.items():
        if getattr(arguments, flag.replace("-", "_")) is not None and arguments.suite not in suites:
            raise ArgumentsError(
                f"--{flag} belongs to --suite {' or '.join(suites)}; got --suite {arguments.suite}"
            )
    known = {LORA: LORA_SIZES, GRAPHS: GRAPHS_SIZES}.get(arguments.suite, ())
    for size in arguments.size or ():
        if size not in known:
            raise ArgumentsError(
                f"--size: got {size} with --suite {arguments.suite}, expected one of {', '.join(known)}"
            )


def _bench_lora(arguments: argparse.Namespace) -> int:
    for count in arguments.loras or ():
        at_least(1, loras=count)
    if arguments.rounds is not None:
        at_least(1, rounds=arguments.rounds)
    plot = arguments.plot or (arguments.json.with_suffix(".png") if arguments.json else None)
    if plot:
        writable(plot, "--plot")
    with _threads(arguments.threads):
        report = _measure_lora(arguments)
    from lib_accel.bench.lora_plot import save_plot
    from lib_accel.bench.lora_table import lora_table

    print(f"{_machine(report['environment'])}\n\n{lora_table(report)}")
    if plot:
        save_plot(report, plot)
    for file in filter(None, (arguments.json, plot)):
        print(f"written: {file}")
    return 0


def _bench_graphs(arguments: argparse.Namespace) -> int:
    with _threads(arguments.threads):
        report = _measure_graphs(arguments)
    from lib_accel.bench.graphs_table import graphs_table

    print(f"{_machine(report['environment'])}\n\n{graphs_table(report)}")
    if arguments.json:
        print(f"written: {arguments.json}")
    return 0


def _bench_memory(arguments: argparse.Namespace) -> int:
    from lib_accel.bench.quiet import quiet

    with quiet(), _threads(arguments.threads):
        from lib_accel.bench.memory_suite import CASES, memory_suite, memory_table
        from lib_accel.bench.progress import Progress

        count = sum(case.quick or not arguments.quick for case in CASES)
        with Progress(count) as progress:
            report = memory_suite(is_quick=arguments.quick, tell=progress.begin)
    print(f"{_machine(report['environment'])}\n\n{memory_table(report)}")
    _keep(report, arguments.json)
    if arguments.json:
        print(f"written: {arguments.json}")
    return 0


def _measure_graphs(arguments: argparse.Namespace) -> dict[str, Any]:
    from lib_accel.bench.quiet import quiet

    with quiet():
        from lib_accel.bench.graphs_suite import BRIEF, Plan, graphs_suite

        plan = replace(BRIEF if arguments.quick else Plan(), threads=arguments.threads)
        if arguments.size:
            sizes = tuple(dict.fromkeys(arguments.size))
            plan = replace(plan, widths=sizes, proved=sizes)
        return graphs_suite(plan, keep=lambda report: _keep(report, arguments.json))


def _keep(report: Mapping[str, Any], file: Path | None) -> None:
    """Writes a report as far as it is done, since a long run may be cut off."""
    if file:
        file.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _measure_lora(arguments: argparse.Namespace) -> dict[str, Any]:
    from lib_accel.bench.quiet import quiet

    with quiet():
        from lib_accel.bench.lora_suite import lora_suite
        from lib_accel.bench.sides import PEFT
        from lib_accel.bench.switching import BRIEF, Plan

        plan = BRIEF if arguments.quick else Plan()
        plan = replace(
            plan,
            sizes=tuple(dict.fromkeys(arguments.size or plan.sizes)),
            counts=tuple(sorted(set(arguments.loras or plan.counts))),
            rounds=arguments.rounds or plan.rounds,
            memory_gib=arguments.memory_gib,
            without=(PEFT,) if arguments.without_peft else (),
        )
        return lora_suite(plan, keep=lambda report: _keep(report, arguments.json))


def _measure(suite: str, *, quick: bool) -> dict[str, Any]:
    """All figures of a suite, as they are written."""
    from lib_accel.bench.quiet import quiet

    with quiet():
        return _measured(suite, quick=quick)


def _measured(suite: str, *, quick: bool) -> dict[str, Any]:
    import torch

    from lib_accel.bench.environment import environment
    from lib_accel.bench.lora import lora_figures
    from lib_accel.bench.measure import CODES, measure
    from lib_accel.bench.progress import Progress

    cases = [case for case in SUITES[suite] if case.quick or not quick]
    effort = QUICK if quick else FULL
    measured = []
    with Progress(len(cases) + 1) as progress:
        for case in cases:
            progress.begin(case.name)
            measured.append(measure(case, effort))
        progress.begin("LoRA: steps and switches")
        lora = lora_figures(effort)
    about = environment(torch.device("cpu")) | {"suite": suite, **asdict(effort), "codes": CODES}
    sampled = [case.name for case in cases if case.is_sampled]
    return summary(measured, lora, sampled=sampled) | {"environment": about}


def summary(
    cases: Sequence[Mapping[str, Any]], lora: Mapping[str, Any], *, sampled: Collection[str]
) -> dict[str, Any]:
    """The figures of the cases and of LoRAs, and what follows from them.

    sampled: names of the cases whose difference is that of a picture's latents.
    """
    latents = {case["name"]: case["difference"]["rel_l2"] for case in cases if case["name"] in sampled}
    return {
        "cases": [dict(case) for case in cases],
        "lora": dict(lora),
        "equality": {"latents_rel_l2": latents},
        "never_slower": never_slower(cases),
    }


def _print(report: Mapping[str, Any]) -> None:
    print(aligned(HEADINGS, [row(case) for case in report["cases"]]))
    print(f"\n{lora_lines(report['lora'])}")
    verdict, about = report["never_slower"], report["environment"]
    slower = "never slower" if verdict["holds"] else f"slower than stock: {', '.join(verdict['slower'])}"
    print(f"\n{slower} (lower end of the interval at least {verdict['floor']})")
    print(_machine(about))


def _machine(about: Mapping[str, Any]) -> str:
    machine = f"{about['cpu']}, {about['threads']} of {about['cores']} cores"
    return f"{machine}, torch {about['torch']}, diffusers {about['diffusers']}, peft {about['peft']}"


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch inside the `with` block, as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
