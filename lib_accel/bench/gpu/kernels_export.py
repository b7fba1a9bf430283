"""`python -m lib_accel.bench.gpu.kernels_export FILE`: a GPU's table of tiles, of what was measured on it.

FILE has rows of `--part kernels-tuning`. The table replaces what was predicted for the same shapes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lib_accel.bench.gpu.file import DONE
from lib_accel.bench.gpu.kernels_cases import call_of
from lib_accel.bench.gpu.kernels_shapes import SHAPES
from lib_accel.bench.gpu.parts import TUNING
from lib_accel.kernels.gpus import GPUS, Gpu, gpu_of
from lib_accel.kernels.order import FOLDER, MEASURED, Case, Row, content_of, file_of, text_of


def rows_of(measured: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The table's rows, of those of the suite; the first counts where several are of one case."""
    rows: dict[Case, Row] = {}
    for each in measured:
        call = call_of(SHAPES[each["case"]]) if each["case"] in SHAPES else None
        is_whole = each.get("kind") == TUNING and each["status"] == DONE
        if not is_whole or call is None or call.case in rows:
            continue
        if us := _microseconds(each):
            rows[call.case] = Row(call.case, us, True)
    return list(rows.values())


def _microseconds(row: Mapping[str, Any]) -> dict[str, float | None]:
    """By tile, the best first; None for what could not be had, or was wrong.

    Each was timed in turn with the table's own: what counts is by how much it is faster than that.
    """
    timed = [each for each in row["tried"] if "ratio" in each]
    if not timed:
        return {}
    own_us = 1000 * median(each["stock_ms"] for each in timed)
    found = {_key(row["tile"]): own_us, **{_key(each["tile"]): own_us / each["ratio"] for each in timed}}
    failed = {_key(each["tile"]): None for each in row["tried"] if "reason" in each}
    return {**dict(sorted(found.items(), key=lambda item: item[1])), **failed}


def _key(tile: str) -> str:
    """order.key_of a tile that has printed itself."""
    return "x".join(re.findall(r"=(\d+)", tile))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the table; returns 1 if the GPU is not in the table of gpus.py, or nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m lib_accel.bench.gpu.kernels_export", description=__doc__)
    parser.add_argument("file", type=Path, help="what `bench --suite gpu --json` has written")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder (default: where tables are read)")
    arguments = parser.parse_args(argv)
    figures = json.loads(arguments.file.read_text("utf-8"))
    gpu = gpu_of(str(figures["environment"].get("gpu")))
    rows = rows_of(figures["rows"].values())
    if gpu is None or not rows or figures["environment"].get("dry_run"):
        known = ", ".join(each.name for each in GPUS)
        print(f"nothing to write: needs rows of kernels-tuning on one of {known}", file=sys.stderr)
        return 1
    print(f"written: {_write(gpu, rows, figures['environment'], arguments.to)}")
    return 0


def _write(gpu: Gpu, rows: Sequence[Row], about: Mapping[str, Any], folder: Path) -> Path:
    file = folder / file_of(gpu, is_measured=True).name
    content = {**content_of(gpu, MEASURED, rows), "torch": about.get("torch"), "triton": about.get("triton")}
    file.write_text(text_of(content), "utf-8")
    return file


if __name__ == "__main__":
    sys.exit(main())
