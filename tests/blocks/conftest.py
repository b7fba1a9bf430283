"""What the tests of blocks rely on: no gradients, the same random numbers, and attention in one dtype."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _scores_in_the_operands_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default `ldm` forms the scores in float32, which then meet bfloat16 values, and torch raises.

    With float32 operands, or where a CPU's autocast casts them anyway, nothing changes.
    """
    monkeypatch.setattr("ldm.modules.attention._ATTN_PRECISION", "fp16")
