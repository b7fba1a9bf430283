"""What a tuner begins with where winners are shipped, and what protects from those that end the program.

Its own winners ran in another process before they run in this one; shipped ones did not. So while they are
new to a process a trial stands on disk, and what ended the program twice is not begun with any more.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

from lib_accel.graphs.verdicts import Verdicts
from lib_accel.tuning.contest import TORCH
from lib_accel.tuning.shipped import FOLDER, Kind, Where, winners

_log = logging.getLogger(__name__)


class Begun:
    """Shipped winners of one process, by the prefix of the verdicts that hold where they do."""

    def __init__(self, verdicts: Verdicts, folder: Path | None = None) -> None:
        """`folder`: of the files; None for those that are shipped."""
        self._verdicts, self._folder = verdicts, folder or FOLDER
        self._codes: dict[str, Mapping[Kind, str]] = {}
        self._trials: set[str] = set()
        self._lock = threading.Lock()
        weakref.finalize(self, _end, verdicts, self._trials)  # also at the end of the program

    def codes(self, prefix: str, where: Callable[[], Where]) -> Mapping[Kind, str]:
        """The codes to begin with; none if they ended the program twice. where: is asked once."""
        with self._lock:
            if prefix not in self._codes:
                self._codes[prefix] = self._found(prefix, where())
            return self._codes[prefix]

    def begin(self, prefix: str) -> None:
        """One of them is about to run for the first time."""
        with self._lock:
            if _trial(prefix) not in self._trials:
                self._trials.add(_trial(prefix))
                self._verdicts.begin_trial(_trial(prefix))

    def end(self) -> None:
        """All that was begun has run."""
        with self._lock:
            _end(self._verdicts, self._trials)

    def forget(self) -> None:
        """Looks for everything anew."""
        with self._lock:
            self._codes.clear()

    def _found(self, prefix: str, where: Where) -> Mapping[Kind, str]:
        found = winners(where, self._folder)
        if found and self._verdicts.get(_trial(prefix), codes=None, usual=TORCH) is not None:
            _log.warning("shipped winners are left out: the program ended twice with them on %s", where.gpu)
            return {}
        return found


def _trial(prefix: str) -> str:
    return f"{prefix}shipped"


def _end(verdicts: Verdicts, trials: set[str]) -> None:
    while trials:
        verdicts.end_trial(trials.pop())
