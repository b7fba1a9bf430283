"""Files of the webui's Lora extension: kept once they were read, and read ahead for requests that wait."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)
PASSING = "accel_is_passing"  # attribute of a file's entry: it will not come again

_MIB = 2**20
_PIECE = 4 * _MIB  # bytes read at once
_FRESH_S = 30.0  # a file that was read so recently is not read again: the page sends a prompt several times
_IN_PROMPT = re.compile(r"<lora:([^:>\"\\]+)")  # as in extra_networks.py, and also inside of JSON


class _File(NamedTuple):
    """A network under a name, in the state in which its file was."""

    name: str
    path: str
    size: int
    written: int  # nanoseconds


class KeptNetworks:
    """Networks that the extension has read, so that it need not read them again.

    They are the extension's own objects, which it also uses again itself, for as long as a prompt names them
    or lora_in_memory_limit allows (networks.py). Kept by name, path, size and time of the file, for one
    checkpoint; the least recently used go first when files take more than `limit_mib` together.

    To read one draws from torch's random numbers, and to get a kept one does not. The webui seeds them anew
    for the picture that follows (rng.py), unless the setting randn_source is NV: then the noise that img2img
    adds to the next image may be another than without us.
    """

    def __init__(
        self,
        limit_mib: Callable[[], int],
        checkpoint: Callable[[], Any],
        count_seconds: Callable[[float], None],
    ) -> None:
        """`checkpoint` gives the one that is loaded; `count_seconds` is told what each loading took."""
        self._limit_mib, self._checkpoint, self._count_seconds = limit_mib, checkpoint, count_seconds
        self._kept: OrderedDict[_File, Any] = OrderedDict()
        self._kept_for: weakref.ref[Any] | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def kept_bytes(self) -> int:
        """Size of the files that are kept."""
        return sum(file.size for file in list(self._kept))

    def loading(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in front of networks.load_network."""

        def load_network(name: str, network_on_disk: Any) -> Any:
            began = time.perf_counter()
            try:
                return self._load(original, name, network_on_disk)
            finally:
                self._count_seconds(time.perf_counter() - began)

        return load_network

    def _load(self, original: Callable[..., Any], name: str, network_on_disk: Any) -> Any:
        self._look_at(self._checkpoint())
        limit = self._limit_mib() * _MIB
        if not limit:
            self.clear()
        if not limit or getattr(network_on_disk, PASSING, False):
            return original(name, network_on_disk)
        file = _file(name, network_on_disk.filename)
        network = self._kept.pop(file, None)
        if network is None or network.name != name:  # who alters a network for one picture renames it
            network = original(name, network_on_disk)
        self._kept[file] = network
        while sum(each.size for each in self._kept) > limit:
            self._kept.popitem(last=False)
        return network

    def _look_at(self, checkpoint: Any) -> None:
        """A network knows the layers of the checkpoint that it was read for."""
        if self._kept_for is None or self._kept_for() is not checkpoint:
            self.clear()
            self._kept_for = weakref.ref(checkpoint)

    def clear(self) -> None:
        """Keeps none."""
        self._kept.clear()


def _file(name: str, path: str) -> _File:
    state = os.stat(path)
    return _File(name, os.path.abspath(path), state.st_size, state.st_mtime_ns)


class ReadAhead:
    """Reads files on a thread of its own, so that the operating system has them when they are needed.

    No more than that: to build a network's modules draws from torch's random numbers, which the picture that
    is being made meanwhile draws from too.
    """

    def __init__(self, find: Callable[[str], str | None]) -> None:
        """`find` gives the path of a network by the name that a prompt has for it."""
        self._find = find
        self._lock = threading.Lock()
        self._asked: dict[str, float] = {}  # when a path was last asked for
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="accel-read-ahead")

    def names(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Reads the files of these networks soon; returns the names that it found, and those it did not."""
        found, unknown = [], []
        for name in dict.fromkeys(names):
            path = self._find(name)
            if path is None:
                unknown.append(name)
                continue
            found.append(name)
            if self._is_due(path):
                self._worker.submit(self._read, path)
        return found, unknown

    def _is_due(self, path: str) -> bool:
        now = time.monotonic()
        with self._lock:
            due = now - self._asked.get(path, -_FRESH_S) >= _FRESH_S
            if due:
                self._asked[path] = now
        return due

    def prompt(self, text: str) -> None:
        """Reads the files of all networks that a text names as prompts do."""
        self.names(_IN_PROMPT.findall(text))

    def wait(self) -> None:
        """Until all is read that was asked for before."""
        self._worker.submit(lambda: None).result()

    def _read(self, path: str) -> None:
        try:
            with open(path, "rb", buffering=0) as file:
                while file.read(_PIECE):
                    pass
        except OSError as error:  # the extension will say so when it gets there
            _log.debug("read ahead: %s", error)
