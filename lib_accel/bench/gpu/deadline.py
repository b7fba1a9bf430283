"""An end to what takes too long, so that one row of the suite of GPUs cannot use up the time of all."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Overdue(BaseException):
    """The time of a row is over. No Exception, which the code that is measured might take for its own."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises Overdue in the block after that time: at once in Python code, else when it comes back to it.

    Only on the main thread of a system that has such alarms; elsewhere there is no end.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise Overdue(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
