"""What is to be timed as it will run: as a recording, where calls are replayed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from lib_accel.errors import CaptureError
from lib_accel.graphs.launcher import Launcher, Recording
from lib_accel.graphs.proof import Side


@contextlib.contextmanager
def as_launched(launcher: Launcher | None, device: torch.device) -> Iterator[Callable[[Side], Side]]:
    """Makes recordings of sides, for the block; what cannot be recorded stays as it is, as it would later.

    A compiled block costs the program more time than a plain one, and the GPU less: launched one by one, the
    former is what one measures.
    """
    recordings: list[Recording] = []
    if launcher is None:
        yield lambda side: side
        return
    with launcher.turn(device) as is_ours:

        def make(side: Side) -> Side:
            if not is_ours:
                return side
            try:
                with torch.inference_mode(False), torch.no_grad():
                    recording = launcher.record(lambda: [side()], [], device)
            except CaptureError:
                return side
            recordings.append(recording)

            def replay() -> torch.Tensor:
                recording.replay()
                return recording.outputs[0]

            return replay

        try:
            yield make
        finally:
            launcher.wait(device)
            for recording in recordings:
                recording.drop()
