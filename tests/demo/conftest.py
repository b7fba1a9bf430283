"""Files that several tests load, and a machine without a network."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.demo import originals
from tests.demo.originals import Original

FAMILIES: dict[str, Callable[[], Original]] = {
    "SD1": originals.sd1,
    "SD2": originals.sd2,
    "SDXL": originals.sdxl,
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the demo may reach for one; a name is looked up before a connection is made."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"asked for the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


class Loaded:
    """An original, the file it was written to and the pipeline that was loaded from that."""

    def __init__(self, original: Original, path: Path) -> None:
        from lib_accel.demo.loading import load_pipeline

        self.original, self.path = original, path
        save_file(original.state(), path)
        self.pipe = load_pipeline(path)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    """By family; each is written and loaded once."""
    made: dict[str, Loaded] = {}

    def load(family: str) -> Loaded:
        if family not in made:
            path = tmp_path_factory.mktemp("original") / f"{family}.safetensors"
            made[family] = Loaded(FAMILIES[family](), path)
        return made[family]

    return load
