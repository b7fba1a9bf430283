"""What every test relies on: one torch thread, and model classes that use plain attention."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lib_accel.engine import Engine
    from tests.fakes.host import FakeHost


def pytest_configure() -> None:
    """Hides xformers before anything imports `ldm`, which would otherwise take its attention from there."""
    sys.modules["xformers"] = None


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """Sums are then in one order on any machine, and two test runs do not fight for the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each test begins as on a new machine; the folder is made when something is first kept."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{next(_NUMBERS)}"
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(folder))


_NUMBERS = itertools.count()

# The fakes import `ldm`, so they are imported only once xformers is hidden.


@pytest.fixture
def host() -> FakeHost:
    """A host that asks for nothing special."""
    from tests.fakes.host import FakeHost

    return FakeHost()


@pytest.fixture
def engine(host: FakeHost) -> Iterator[Engine]:
    """An engine in that host, attached for the test."""
    from tests.fakes.host import attached

    with attached(host) as engine:
        yield engine


@pytest.fixture
def fakes() -> Iterator[SimpleNamespace]:
    """The webui's modules, by name."""
    from tests.fakes import webui

    with webui.installed() as modules:
        yield modules


@pytest.fixture
def extension(fakes: SimpleNamespace) -> Iterator[Any]:
    """Our extension, registered in the fake webui."""
    module = importlib.import_module("lib_accel.extension")
    module.register()
    yield module
    fakes.script_callbacks.registered["on_script_unloaded"]()
