"""The file of the suite of GPUs: rows are kept as they are done, so that a command goes on where one ends."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_accel.bench.arguments import ArgumentsError

Figures = dict[str, Any]

SUITE = "gpu"
DONE, LEFT_OUT, FAILED, OVERDUE = "done", "left out", "failed", "overdue"

# Rows that differ in one of these cannot stand in one file: their figures cannot be compared.
_ALIKE = ("suite", "dry_run", "gpu", "torch", "commit")


def row_name(part: str, case: str, side: str) -> str:
    """A row's name in the file."""
    return f"{part} / {case} / {side}"


class RowFile:
    """The rows that were measured, in memory and, if there is a file, in it as well."""

    def __init__(self, path: Path | None, environment: Mapping[str, Any]) -> None:
        """Takes over what the file holds.

        Raises ArgumentsError if it is no file of this suite, or of another machine, torch or commit.
        """
        self._path = path
        self.figures: Figures = {"environment": dict(environment), "clocks": {}, "rows": {}, "running": None}
        if path is not None and path.exists() and path.stat().st_size:
            self._take(_read(path))

    @property
    def rows(self) -> Figures:
        """By name, in the order in which they were measured."""
        rows: Figures = self.figures["rows"]
        return rows

    def begin(self, name: str) -> None:
        """Notes that this row is being measured, should the process end meanwhile."""
        self.figures["running"] = name
        self._write()

    def end(self, name: str, row: Mapping[str, Any]) -> None:
        """Keeps a row."""
        self.figures["running"] = None
        self.rows[name] = dict(row)
        self._write()

    def note_clocks(self, part: str, clocks: Mapping[str, Any]) -> None:
        """Keeps how fast the GPU ran at the end of a part."""
        self.figures["clocks"][part] = dict(clocks)
        self._write()

    def forget_failures(self) -> None:
        """Has rows measured again that are not done."""
        for name in [name for name, row in self.rows.items() if row["status"] != DONE]:
            del self.rows[name]

    def _take(self, read: Figures) -> None:
        here, there = self.figures["environment"], read["environment"]
        for key in _ALIKE:
            if here.get(key) != there.get(key):
                raise ArgumentsError(
                    f"--json: {self._path} has rows with {key} {there.get(key)}, this is {here.get(key)}; "
                    "name another file"
                )
        self.figures["clocks"], self.figures["rows"] = read["clocks"], read["rows"]
        name = read["running"]
        if name is not None and name not in self.rows:
            part, case, side = name.split(" / ")
            self.rows[name] = {
                "part": part,
                "case": case,
                "side": side,
                "status": FAILED,
                "reason": "the process ended while this was measured",
            }

    def _write(self) -> None:
        if self._path is not None:
            # Never half a file, whenever the process is ended.
            beside = self._path.with_name(f"{self._path.name}.new")
            beside.write_text(json.dumps(self.figures, indent=1) + "\n", "utf-8")
            os.replace(beside, self._path)


def _read(path: Path) -> Figures:
    try:
        read = json.loads(path.read_text("utf-8"))
        if read["environment"]["suite"] == SUITE and {"clocks", "rows", "running"} <= read.keys():
            figures: Figures = read
            return figures
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ArgumentsError(f"--json: {path} is no file of the suite {SUITE}; name another file")
