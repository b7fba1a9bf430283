"""A set of networks on its way: made ready on a thread, while what does not need it yet goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

Fuse = Callable[[str], None]  # writes the weights of one part: TEXT or UNET

TEXT, UNET = "text", "unet"


class Arrival:
    """Reads and fuses a set of networks without anybody waiting, until a model is called that must carry it.

    The text encoders' weights are written before the UNet's, so that the UNet's are written while the text
    encoders compute. Weights are never written while their model computes: the call waits, or they do.
    """

    def __init__(
        self, prepare: Callable[[], Fuse], late_calls: int = 0, *, changes_text: bool = True
    ) -> None:
        """`prepare` reads and checks, and returns what then writes.

        late_calls: how many calls of the UNet may go on without the set, as long as it is not read yet. This
        changes the picture. Source: SwiftDiffusion, arXiv:2407.02031. changes_text: whether the weights of
        the text encoders are to change; if not, nothing is waited for there.
        """
        self._late_calls, self._changes_text = late_calls, changes_text
        self._turn = threading.Lock()  # one part is written at a time
        self._written: set[str] = set()
        worker = ThreadPoolExecutor(1, thread_name_prefix="accel-loras")
        self._fuse: Future[Fuse] = worker.submit(prepare)
        if not late_calls:  # else the UNet may be computing: its next call writes
            worker.submit(self._write_all)
        worker.shutdown(wait=False)

    def before_call(self, part: str) -> None:
        """To be called before each call of a model of this part; raises what went wrong, each time."""
        if part == UNET and self._late_calls > 0 and not self._fuse.done():
            self._late_calls -= 1
        elif part == UNET:
            self.wait()
        elif self._changes_text:
            self._write(TEXT)

    def wait(self) -> None:
        """Until all weights are written; raises what went wrong."""
        self._write(TEXT)
        self._write(UNET)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to wait for."""
        return {TEXT, UNET} <= self._written

    def _write_all(self) -> None:
        for part in (TEXT, UNET):
            self._write(part)

    def _write(self, part: str) -> None:
        fuse = self._fuse.result()
        with self._turn:
            if part not in self._written:
                fuse(part)
                self._written.add(part)
