"""A stand-in for CUDA graphs in our server, which has no GPU: calls of blocks and models are replayed there.

What is recorded, when it is replayed and when not is decided as on a GPU; see lib_accel/graphs/recorder.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .compare import Line

SETTINGS = {"accel_launch": "graph"}  # "auto" replays what gains time, and a recorder gains none

# What is there already stays, with all that it has recorded: the engine outlives "Reload UI".
INSTALL = """
from lib_accel import extension
from lib_accel.graphs.recorder import Recorder
extension._engine._launching._launches._launchers.setdefault("cpu", Recorder())
"""

LEFT_OUT = {
    "compiled": "compiled code does not run while a recorder looks on",
    "steps": "it counts operations, and those of the stand-in are not a GPU's",
    "steps-xl": "it counts operations, and those of the stand-in are not a GPU's",
}
NOTHING_TO_REPLAY = {
    "auth": "it draws no picture",
    "no-api": "it draws no picture",
}


def line(group: str, launches: Mapping[str, Any]) -> Line:
    """What was replayed in a group, as a line of the table; `launches` is that part of the status."""
    replays, captures = launches["replays"], launches["captures"]
    told = Line(group, "stand-in", f"{replays} replays of {captures} recordings", launches=dict(launches))
    reason = NOTHING_TO_REPLAY.get(group)
    if reason is None and not replays:
        told.problems.append(f"nothing was replayed: {launches['reasons'] or 'nothing was called twice'}")
    if reason is not None and replays:
        told.problems.append(f"something was replayed, although {reason}")
    return told
