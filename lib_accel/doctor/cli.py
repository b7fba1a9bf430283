"""The command line of doctor."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lib_accel.doctor.checks import examine, is_enough
from lib_accel.doctor.live import LiveMachine
from lib_accel.doctor.privacy import private_words
from lib_accel.doctor.report import as_json, as_report, as_table, without_private_words
from lib_accel.doctor.webui import VARIABLE, lacks

_WIDEST = 140


def main(argv: Sequence[str]) -> int:
    """Prints what works on this machine: 0 if our minimum does, 1 if not. Wrong arguments exit with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.webui is not None and (lacking := lacks(Path(arguments.webui).expanduser())):
        parser.error(
            f"--webui: got {arguments.webui!r}, which lacks {' and '.join(lacking)}; "
            "expected a webui's folder, which has them"
        )
    rows = examine(LiveMachine(arguments.webui))
    private = private_words(os.environ, _folders(arguments.webui))
    rows = without_private_words(rows, private)
    if arguments.json:
        text = as_json(rows)
    elif arguments.report:
        text = as_report(rows)
    else:
        text = as_table(rows, min(shutil.get_terminal_size().columns, _WIDEST))
    # A message of the system may hold letters that the terminal has not.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))
    return 0 if is_enough(rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib_accel doctor",
        description="Says what works on this machine, why the rest does not, and what to do about it. "
        "Changes nothing. Ends with 0 if our minimum works, with 1 if not.",
        allow_abbrev=False,
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the same as data")
    form.add_argument(
        "--report", action="store_true", help="the same to copy into an issue, as a Markdown code block"
    )
    parser.add_argument(
        "--webui",
        metavar="DIR",
        help=f"a webui to look at (default: ${VARIABLE}, or the one around this folder)",
    )
    return parser


def _folders(webui: str | None) -> tuple[Path, ...]:
    named = [name for name in (webui, os.environ.get(VARIABLE)) if name]
    return (
        *map(Path, named),
        Path.cwd(),
        Path(sys.prefix),
        Path(tempfile.gettempdir()),
        Path(__file__).parents[2],
    )
