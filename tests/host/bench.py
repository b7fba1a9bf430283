"""Speed in a real webui, ours against stock: `python -m tests.host.bench --webui DIR --venv DIR --json FILE`.

Both run in one server process with one thread: the request turns the extension off and on, in the order
A B B A, after both have been warmed up. A step is timed inside the server, from one answer of the model to
the next; the first step of each request, which may carry a change of weights, is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from .bench_cases import CASES, FLAGS, Case
from .bench_stats import Run, summary
from .kit.client import diff
from .kit.start import StartFailed, start
from .kit.stop import stop
from .outcome import Blocks
from .pair import HERE, Place, end_servers_when_terminated
from .row import Group
from .session import Session

TIMER = {"step-timer": HERE / "extensions" / "step-timer"}
ENVIRONMENT_CODE = """
import json, platform, torch
from modules import sd_hijack
print(json.dumps({"torch": torch.__version__, "python": platform.python_version(),
    "threads": torch.get_num_threads(), "attention": sd_hijack.model_hijack.optimization_method}))
"""
HEADING = (
    f"{'case':36} {'stock ms':>9} {'ours ms':>9} {'ratio':>6} {'95 % interval':>15} {'direct':>7} {'max':>4}"
)


class Bench:
    """One server, on which cases of one checkpoint and one attention are measured."""

    def __init__(self, session: Session, *, accel: bool):
        self.session = session
        self.sides = {"stock": False, "ours": True} if accel else {"stock": None, "ours": None}

    def request(self, case: Case, side: str) -> tuple[Run, list[Any], Blocks | None]:
        """Send one request and read the notes on it."""
        self.session.client.call("/step-timer/steps")
        body = self.session.request(case.picture(accel=self.sides[side]))
        result = self.session.client.generate(body)
        run = Run.of_notes(self.session.client.call("/step-timer/steps"), result.seconds)
        blocks = Blocks.of_status(self.session.status()) if self.session.ours else None
        return run, result.images, blocks

    def measure(self, case: Case) -> dict[str, Any]:
        """Figures of one case."""
        runs: dict[str, list[Run]] = {side: [] for side in self.sides}
        latest = {side: self.request(case, side) for side in self.sides}  # to warm up
        for number in range(case.pairs):
            for side in ("stock", "ours") if number % 2 == 0 else ("ours", "stock"):
                latest[side] = self.request(case, side)
                runs[side].append(latest[side][0])
        far = [diff(*pair) for pair in zip(latest["stock"][1], latest["ours"][1], strict=True)]
        shares = {side: share_direct(latest[side][2]) for side in self.sides}
        return {
            "case": case.name,
            **asdict(case),
            **summary(runs["stock"], runs["ours"]),
            "picture_max": max(each.max for each in far),
            "picture_mean": max(each.mean for each in far),
            "direct_share": shares["ours"],
            "direct_share_stock": shares["stock"],
        }


def share_direct(blocks: Blocks | None) -> float | None:
    """Share of the blocks that ran directly; None where nothing is known of them."""
    if blocks is None:
        return None
    return blocks.direct / max(blocks.direct + blocks.host, 1)


def line(figures: dict[str, Any]) -> str:
    """Figures of a case as a line of the table."""
    share = figures["direct_share"]
    spread = f"{figures['ratio_low']:.3f} - {figures['ratio_high']:.3f}"
    direct = "-" if share is None else f"{100 * share:.0f} %"
    times = f"{figures['stock_ms_per_step']:9.1f} {figures['ours_ms_per_step']:9.1f}"
    rest = f"{figures['ratio']:6.3f} {spread:>15} {direct:>7} {figures['picture_max']:4.0f}"
    return f"{figures['case']:36} {times} {rest}"


def measure_all(cases: list[Case], place: Place) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure cases, one server for those of one checkpoint and attention; also what they ran on."""
    results: list[dict[str, Any]] = []
    servers: dict[str, Any] = {}
    for (checkpoint, attention), some in groupby(cases, lambda case: (case.checkpoint, case.attention)):
        group = Group("bench", (), checkpoint=checkpoint, flags=FLAGS[attention])
        launch = place.launch(group, ours=True, extra=TIMER)
        start(launch)
        try:
            session = Session(launch, ours=place.accel)
            servers[f"{checkpoint} {attention}"] = json.loads(session.client.run_code(ENVIRONMENT_CODE))
            bench = Bench(session, accel=place.accel)
            for case in some:
                results.append(bench.measure(case))
                print(line(results[-1]), flush=True)
        finally:
            stop(launch.webui, launch.port)
    return results, servers


def environment(place: Place) -> dict[str, Any]:
    """Versions and machine, as far as they show without a server."""
    commit = subprocess.run(
        ["git", "-C", str(place.webui), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "webui_commit": commit.stdout.strip(),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "1"),
        "date": time.strftime("%Y-%m-%d"),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.host.bench", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--webui", type=Path, required=True, help="webui checkout, with sd-webui-controlnet")
    parser.add_argument("--venv", type=Path, required=True, help="its virtual environment")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--cases", default="", metavar="PATTERN", help="only cases whose name matches")
    parser.add_argument("--pairs", type=int, help="pairs of requests of each case")
    parser.add_argument("--port", type=int, default=7871, help="the server uses the port after this one")
    parser.add_argument(
        "--self-check", action="store_true", help="without the extension: ratios must be near 1"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    return parser.parse_args()


def main() -> int:
    """Measure what the command line asks for."""
    arguments = parse_arguments()
    end_servers_when_terminated()
    cases = [case for case in CASES if re.search(arguments.cases, case.name, re.IGNORECASE)]
    if arguments.pairs:
        cases = [replace(case, pairs=arguments.pairs) for case in cases]
    if arguments.list:
        print(*(case.name for case in cases), sep="\n")
        return 0
    place = Place.make(arguments.webui, arguments.venv, arguments.port, accel=not arguments.self_check)
    place.make_models({case.checkpoint for case in cases})
    print(HEADING, flush=True)
    began = time.monotonic()
    try:
        results, servers = measure_all(cases, place)
    except StartFailed as failure:
        sys.exit(str(failure))
    print(f"{len(results)} cases, {time.monotonic() - began:.0f} s")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"environment": environment(place), "servers": servers, "cases": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
