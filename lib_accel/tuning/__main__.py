"""`python -m lib_accel.tuning ship`: makes what this machine has measured what others begin with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lib_accel.graphs.verdicts import default_folder
from lib_accel.tuning.shipped import FOLDER, ship


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the winners of folders of choices; returns 1 if there are none, or a file cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m lib_accel.tuning", description=__doc__)
    parser.add_argument("what", choices=("ship",))
    parser.add_argument(
        "--from",
        dest="sources",
        type=Path,
        nargs="+",
        default=[default_folder()],
        metavar="FOLDER",
        help="where choices are kept (default: %(default)s)",
    )
    parser.add_argument("--to", type=Path, default=FOLDER, help="where winners are read by everybody")
    arguments = parser.parse_args(argv)
    try:
        files = [file for source in arguments.sources for file in ship(_kept(source), arguments.to)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"tuning: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for file in dict.fromkeys(files):
        print(f"written: {file}")
    if not files:
        print("tuning: no operator has a winner there that says what it is for", file=sys.stderr)
    return 0 if files else 1


def _kept(folder: Path) -> list[dict[str, object]]:
    content = json.loads((folder / "verdicts.json").read_text("utf-8"))
    return list(content["verdicts"].values())


if __name__ == "__main__":
    sys.exit(main())
