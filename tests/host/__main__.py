"""End-to-end tests in a real webui: `python -m tests.host --webui DIR --venv DIR`, with the venv's python.

For each group of rows two servers are started, one without and one with this extension; both get the same
requests in the same order. Every picture must be the same but for rounding, every printed text must be equal,
and the blocks must have run at the speed that the row states. Exit status 1 if a line failed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

from . import stand_in
from .compare import HEADING, Line
from .kit.start import StartFailed
from .pair import Pair, Place, end_servers_when_terminated
from .row import Group
from .rows.groups import GROUPS


def chosen(pattern: str) -> list[Group]:
    """Groups with the rows whose "group/row" matches ``pattern``, as a regular expression."""
    groups = []
    for group in GROUPS:
        rows = tuple(
            row for row in group.rows if re.search(pattern, f"{group.name}/{row.name}", re.IGNORECASE)
        )
        if rows:
            groups.append(Group(**{**vars(group), "rows": rows}))
    return groups


def without_others(groups: list[Group]) -> tuple[list[Group], list[str]]:
    """Groups that need no other extensions, and for each of the rest what it lacks."""
    kept = [group for group in groups if not group.others]
    left_out = [
        f"{group.name}: left out, it needs --others FOLDER with checkouts of {', '.join(group.others)}"
        for group in groups
        if group.others
    ]
    return kept, left_out


def run(groups: list[Group], place: Place, *, keep_going: bool) -> list[Line]:
    """Run these groups and print their lines; without ``keep_going``, stop after the first row that fails."""
    lines: list[Line] = []
    for group in groups:
        began = time.monotonic()
        try:
            with Pair(group, place) as pair:
                for row in group.rows:
                    new = pair.run(row)
                    lines += new
                    print(*new, sep="\n", flush=True)
                    if any(line.problems for line in new) and not keep_going:
                        return lines
                lines += (told := pair.replayed())
                print(*told, sep="\n", end="\n" * bool(told), flush=True)
        except StartFailed as failure:
            lines.append(Line(group.name, "", "start", problems=[str(failure)]))
            print(lines[-1], flush=True)
            if not keep_going:
                return lines
        print(f"-- {group.name}: {time.monotonic() - began:.0f} s", flush=True)
    return lines


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.host", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--webui", type=Path, help="webui checkout, with sd-webui-controlnet among its extensions"
    )
    parser.add_argument("--venv", type=Path, help="its virtual environment")
    parser.add_argument(
        "--others",
        type=Path,
        metavar="FOLDER",
        help="checkouts of other extensions, for the group of that name",
    )
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only rows whose GROUP/ROW matches")
    parser.add_argument("--json", type=Path, help="write the lines into this file too")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument("--keep-going", action="store_true", help="go on after a row that failed")
    parser.add_argument("--port", type=int, default=7871, help="first of two ports (default 7871)")
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="leave the extension out of both servers: a test of this table, which must then be all equal",
    )
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="replay calls in our server as on a GPU, through a stand-in for CUDA graphs",
    )
    arguments = parser.parse_args()
    if arguments.stand_in and arguments.self_check:
        parser.error("--stand-in is for the server that --self-check goes without")
    if not arguments.list and not (arguments.webui and arguments.venv):
        parser.error("--webui and --venv are needed")
    return arguments


def main() -> int:
    """Run what the command line asks for; 1 if a line failed."""
    arguments = parse_arguments()
    end_servers_when_terminated()
    groups = chosen(arguments.rows)
    if arguments.list:
        print(*(f"{group.name}/{row.name}" for group in groups for row in group.rows), sep="\n")
        return 0
    if arguments.self_check:
        groups = [group for group in groups if group.stock]
    left_out: list[str] = []
    if arguments.others is None:
        groups, left_out = without_others(groups)
    if arguments.stand_in:
        left_out += [
            f"{group.name}: left out, {stand_in.LEFT_OUT[group.name]}"
            for group in groups
            if group.name in stand_in.LEFT_OUT
        ]
        groups = [group for group in groups if group.name not in stand_in.LEFT_OUT]
    if left_out and not groups:
        print(*left_out, sep="\n")
        return 1
    place = Place.make(
        arguments.webui,
        arguments.venv,
        arguments.port,
        accel=not arguments.self_check,
        others=arguments.others,
        replays=arguments.stand_in,
    )
    place.make_models({model for group in groups for model in group.models})
    print(HEADING, flush=True)
    began = time.monotonic()
    lines = run(groups, place, keep_going=arguments.keep_going)
    failed = [line for line in lines if line.problems]
    print(f"{len(lines)} lines, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    print(*failed, *left_out, sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps([line.as_json() for line in lines], indent=1) + "\n")
    return 1 if failed or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
