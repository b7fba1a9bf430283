"""What every test relies on: one torch thread, and model classes that use plain attention."""

import sys

import pytest


def pytest_configure() -> None:
    """Hides xformers before anything imports `ldm`, which would otherwise take its attention from there."""
    sys.modules["xformers"] = None


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """Sums are then in one order on any machine, and two test runs do not fight for the cores."""
    import torch

    torch.set_num_threads(1)
