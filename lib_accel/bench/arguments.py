"""A command line whose problems are one line and exit status 2, as all bad input is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lib_accel.errors import AccelError


class ArgumentsError(AccelError):
    """The command line cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Raises ArgumentsError where argparse would print its usage and leave; knows flags by full name only."""

    def __init__(self, *, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises ArgumentsError with argparse's message and where help is."""
        raise ArgumentsError(f"{message}; see `{self.prog} --help`")


def told(command: Callable[[list[str]], int], argv: list[str], *, name: str) -> int:
    """The command's exit status; 2, after one line on stderr, if it raised an AccelError."""
    try:
        return command(argv)
    except AccelError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def at_least(least: int, **values: int) -> None:
    """Raises ArgumentsError that names the first flag whose value is lower."""
    for name, value in values.items():
        if value < least:
            raise ArgumentsError(f"--{name}: got {value}, expected {least} or more")


def writable(file: Path, flag: str) -> None:
    """Makes the file's folder, and raises ArgumentsError if the file cannot be written there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_new = not file.exists()
        with file.open("a", encoding="utf-8"):
            pass
        if is_new:
            file.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ArgumentsError(
            f"{flag}: cannot write {file} ({reason}); name a file in another folder"
        ) from None
