"""`python -m lib_accel bench`: stock diffusers against ours, in one process, in turn."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib_accel.bench.arguments import Parser, at_least, told, writable
from lib_accel.bench.stats import never_slower
from lib_accel.bench.suites import FULL, QUICK, SUITES
from lib_accel.bench.table import HEADINGS, aligned, lora_lines, row


def main(argv: list[str]) -> int:
    """Measures what the command line asks for; 2, with one line on stderr, if it cannot."""
    return told(_bench, argv, name="bench")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m lib_accel bench", description="Times stock diffusers and ours in turn.")
    parser.add_argument("--suite", choices=sorted(SUITES), default="cpu", help="which cases (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write all figures to")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a few cases, {QUICK.pairs} pairs: shows that all works, not how fast it is",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads (default: 1)")
    return parser


def _bench(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    at_least(1, threads=arguments.threads)
    if arguments.json:
        writable(arguments.json, "--json")
    with _threads(arguments.threads):
        report = _measure(arguments.suite, quick=arguments.quick)
    _print(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        print(f"written: {arguments.json}")
    return 0


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
    machine = f"{about['cpu']}, {about['threads']} of {about['cores']} cores"
    print(f"{machine}, torch {about['torch']}, diffusers {about['diffusers']}, peft {about['peft']}")


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
