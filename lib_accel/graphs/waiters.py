"""Callers who wait until nothing is left of what they want done: for them it is done at once, idle or not."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Waiters:
    """Those who wait for what a thread does that is told by `changed`; true as long as there are any."""

    def __init__(self, changed: threading.Condition) -> None:
        """`changed`: notified whenever less is left."""
        self._changed = changed
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def wait(
        self, left: Callable[[], int], timeout_s: float | None, tell: Callable[[int], None] | None
    ) -> bool:
        """Whether nothing was left in time; `tell` hears how much is."""

        def is_done() -> bool:
            count = left()
            if tell is not None:
                tell(count)
            return count == 0

        with self._changed:
            self._count += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(is_done, timeout_s)
            finally:
                self._count -= 1
