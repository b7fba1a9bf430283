"""Networks that were read, kept to be used again: those of files by the file's state, bounded in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping
from concurrent.futures import Future
from numbers import Real
from pathlib import Path
from typing import Any

from torch import Tensor

from lib_accel.lora.formats import FileState, check_path, file_state, read_network
from lib_accel.lora.network import LoraError, Network

_MIB = 2**20

# File or state dict, text encoders' scale, UNet's and, if there is a fourth, how many ranks: None for all.
Lora = (
    tuple[str | Path | Mapping[str, Tensor], float, float]
    | tuple[str | Path | Mapping[str, Tensor], float, float, int | None]
)


class Library:
    """Reads each file once for as long as it is not written to; several threads may ask for it at a time.

    The files' tensors are mapped, so what counts against the limit is memory that the system can take back.
    The least recently used go first. Networks given as tensors are kept only as `keep_given` says.
    """

    def __init__(self, limit_mib: int = 1024) -> None:
        """`limit_mib`: how large all kept files may be together."""
        self._limit = limit_mib * _MIB
        self._lock = threading.Lock()
        self._kept: OrderedDict[FileState, Network] = OrderedDict()
        self._reading: dict[FileState, Future[Network]] = {}
        self._given: dict[Hashable, tuple[Mapping[str, Tensor], Network]] = {}

    @property
    def kept_bytes(self) -> int:
        """Size of the kept files."""
        with self._lock:
            return sum(state.size for state in self._kept)

    def read(self, source: str | Path | Mapping[str, Tensor]) -> Network:
        """As `formats.read_network`, but the same network for the same source. Raises LoraError too."""
        return self._read_given(source) if isinstance(source, Mapping) else self._read_file(Path(source))

    def _read_file(self, path: Path) -> Network:
        check_path(path)
        try:
            state = file_state(path)
        except OSError:
            return read_network(path)  # which says what is wrong
        with self._lock:
            if state in self._kept:
                self._kept.move_to_end(state)
                return self._kept[state]
            reading = self._reading.get(state)
            if reading is None:
                mine = self._reading[state] = Future()
        if reading is not None:
            return reading.result()
        try:
            network = read_network(path)
        except BaseException as error:
            with self._lock:
                del self._reading[state]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._reading[state]
            self._keep(state, network)
        mine.set_result(network)
        return network

    def _keep(self, state: FileState, network: Network) -> None:
        for old in [each for each in self._kept if each.path == state.path]:
            del self._kept[old]
        self._kept[state] = network
        while sum(each.size for each in self._kept) > self._limit:
            self._kept.popitem(last=False)

    def _read_given(self, tensors: Mapping[str, Tensor]) -> Network:
        # The tensors are kept with it, so that no others can get their ids meanwhile.
        identity = tuple(
            (name, id(tensor), 0 if tensor.is_inference() else tensor._version)
            for name, tensor in tensors.items()
        )
        with self._lock:
            if identity in self._given:
                return self._given[identity][1]
        network = read_network(tensors)
        with self._lock:
            self._given[identity] = (dict(tensors), network)
        return network

    def keep_given(self, networks: Collection[Network]) -> None:
        """Of the networks that were given as tensors, keeps these only."""
        with self._lock:
            self._given = {key: kept for key, kept in self._given.items() if kept[1] in networks}


def check_lora(lora: Any) -> None:
    """Raises LoraError unless it is a Lora, as far as its parts tell."""
    is_tuple = isinstance(lora, (tuple, list)) and len(lora) in (3, 4)
    if not is_tuple or not all(isinstance(scale, Real) for scale in lora[1:3]):
        shown = f"{len(lora)} values" if isinstance(lora, (tuple, list)) else type(lora).__name__
        raise LoraError(
            f"set_loras: got {'no numbers for scales' if is_tuple else shown}, expected (path or state dict, "
            "scale for the text encoders, scale for the UNet[, number of ranks]) for each LoRA"
        )
