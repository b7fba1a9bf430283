"""What the tests of layouts rely on: no gradients, and the same random numbers in every run."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_no_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield
