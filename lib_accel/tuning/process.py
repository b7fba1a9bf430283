"""A worker as the one who asks has it: it is started, asked one contest after the other, and ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from lib_accel.graphs.worker import search_path
from lib_accel.tuning.worker import Answer, Contest, answer_in, is_ready, packed

_SILENCE_S = 600.0  # without a word, it hangs
_LOOK_EVERY_S = 0.05

_T = TypeVar("_T")


class End(NamedTuple):
    """A worker that ended instead of giving an answer."""

    reason: str
    is_ours: bool  # it was to stop


class Process:
    """One worker. After an End it is gone."""

    def __init__(self, command: Sequence[str] = (), *, silence_s: float = _SILENCE_S) -> None:
        """`command`: of another worker than ours. Raises OSError if there can be no process."""
        if not command and not sys.executable:
            raise FileNotFoundError("it is not known which program Python is")
        self._silence_s = silence_s
        self._was_stopped = False
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "lib_accel.tuning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # who interrupts the host from its terminal does not mean this one
            env=os.environ | {"PYTHONPATH": search_path()},
        )

    def await_ready(self, must_stop: Callable[[], bool]) -> bool | End:
        """Waits for its first word, which takes the seconds that torch takes to be imported."""
        return self._heard(is_ready, must_stop)

    def ask(self, contest: Contest, must_stop: Callable[[], bool]) -> Answer | End:
        """Its answer. The worker is ended as soon as `must_stop`, which is asked all the time."""
        return self._heard(answer_in, must_stop, packed(contest))

    def end(self) -> None:
        """Ends the worker, whatever it does; harmless to repeat."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # there may be something in it that nobody has read
                    pipe.close()
        self._process.wait()

    def _heard(
        self, understood: Callable[[bytes], _T | None], must_stop: Callable[[], bool], said: bytes = b""
    ) -> _T | End:
        """What the worker says next that is understood."""
        source, target = self._process.stdout, self._process.stdin
        assert source is not None
        assert target is not None
        with self._watched(must_stop):
            with contextlib.suppress(OSError):  # it may be gone
                target.write(said)
                target.flush()
            found = next((each for each in map(understood, source) if each is not None), None)
        if found is not None:
            return found
        self.end()
        return End(f"the process ended with {self._process.returncode}", self._was_stopped)

    @contextlib.contextmanager
    def _watched(self, must_stop: Callable[[], bool]) -> Iterator[None]:
        """Ends the process in the block if it says nothing for too long, or has to stop."""
        is_over = threading.Event()

        def watch() -> None:
            deadline = time.monotonic() + self._silence_s
            while not is_over.wait(_LOOK_EVERY_S):
                if must_stop():
                    self._was_stopped = True
                elif time.monotonic() < deadline:
                    continue
                self._process.kill()
                return

        watcher = threading.Thread(target=watch, name="accel-tuning-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
