"""The record of a server that start.py runs: which process it is.

A pid alone may be reused, so the record also holds the start time of the process, as Linux keeps it in /proc.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

PATIENCE_S = 10.0  # between asking a server to end and ending it


def state_folder(webui: Path, port: int) -> Path:
    """Data folder of the server on this port; git ignores the webui's tmp."""
    return webui / "tmp" / f"accel-host-{port}"


def process_start(pid: int) -> int | None:
    """Start time of process ``pid`` in clock ticks since boot, or None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may contain spaces
    return None if fields[0] == "Z" else int(fields[19])


@dataclass
class RunningServer:
    """One server process."""

    pid: int
    started: int

    @classmethod
    def load(cls, folder: Path) -> RunningServer | None:
        """Read the record in ``folder``, if there is one."""
        record = folder / "server.json"
        return cls(**json.loads(record.read_text())) if record.exists() else None

    def save(self, folder: Path) -> None:
        """Write the record into ``folder``."""
        (folder / "server.json").write_text(json.dumps(asdict(self)) + "\n")

    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        return process_start(self.pid) == self.started

    def end(self) -> None:
        """End this process, politely at first."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + PATIENCE_S
            if self.alive():
                os.kill(self.pid, number)
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.1)
