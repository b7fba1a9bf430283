"""The counters of a package in a process of its own, since what a process has compiled it does not forget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Figures = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
_TOLD_LINES = 3  # of what a process that failed said last


def cold_and_warm(package: str, width: str, threads: int) -> Figures:
    """graphs_mix.counters_of in a new process twice: without files of the compiler's, and with the first's.

    The figures are the first's, with the second's seconds beside them. Where the package is missing, or the
    process fails, `left_out` says why and is all there is.
    """
    with tempfile.TemporaryDirectory(prefix="accel-bench-") as folder:
        cold = _counters(package, width, threads, Path(folder))
        if "left_out" in cold:
            return cold
        warm = _counters(package, width, threads, Path(folder))
    seconds = {f"warm_{key}": warm.get(key) for key in ("compile_s", "warm_up_s")}
    return {**cold, **seconds}


def _counters(package: str, width: str, threads: int, folder: Path) -> Figures:
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", __name__, package, width, str(threads)],
        env=os.environ
        | {
            "PYTHONPATH": path,
            "TORCHINDUCTOR_CACHE_DIR": str(folder),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-_TOLD_LINES:]
        return {"left_out": f"its process ended with {done.returncode}: {' | '.join(last)}"}
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(argv: list[str]) -> int:
    """Prints the counters of a package, at a width, with so many threads."""
    package, width, threads = argv
    import torch

    from lib_accel.bench.quiet import quiet

    torch.set_num_threads(int(threads))
    with quiet():
        from lib_accel.bench.graphs_mix import counters_or_reason

        figures = counters_or_reason(package, width)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
