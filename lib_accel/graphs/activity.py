"""Whether models are being called in this process: what would make them stutter waits until they are not."""

from __future__ import annotations

import functools
import threading
import time

_IDLE_AFTER_S = 2.0  # since the latest call ended: between two steps there is less


class _Own(threading.local):
    """Of one thread."""

    running = 0


class Activity:
    """Counts calls that are running, on all threads."""

    def __init__(self, idle_after_s: float = _IDLE_AFTER_S) -> None:
        self._idle_after_s = idle_after_s
        self._running = 0
        self._ended_at = 0.0
        self._own = _Own()
        self._lock = threading.Lock()

    def enter(self) -> None:
        """A call begins; `leave` follows, whatever happens in it."""
        self._own.running += 1
        with self._lock:
            self._running += 1

    def leave(self) -> None:
        """A call has ended."""
        self._own.running -= 1
        with self._lock:
            self._running -= 1
            self._ended_at = time.monotonic()

    @property
    def elsewhere(self) -> int:
        """How many calls run on other threads than this one."""
        return self._running - self._own.running

    def is_idle(self) -> bool:
        """Whether no call runs, nor has one ended just now."""
        return not self._running and time.monotonic() - self._ended_at > self._idle_after_s


@functools.cache
def activity_of_this_process() -> Activity:
    """The one that engines share."""
    return Activity()
