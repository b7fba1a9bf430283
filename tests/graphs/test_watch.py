"""What no capture can hold is found in a call that is launched as always."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_accel.errors import CaptureError
from lib_accel.graphs.watch import Watch

X = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    ("waiting", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 3), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 2], "index"),
        (lambda x: x.masked_select(x > 2), "masked_select"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.unique(), "_unique2"),
    ],
)
def test_what_waits_for_the_device_is_named(waiting: Callable[[Tensor], Any], name: str) -> None:
    with pytest.raises(CaptureError, match=f"^{name} waits for the device$"), Watch():
        waiting(X)


def test_what_goes_from_device_to_device_is_told() -> None:
    with pytest.raises(CaptureError, match="goes from cpu to meta"), Watch():
        X.to("meta")


def test_what_can_be_captured_is_computed_as_ever() -> None:
    def compute(x: Tensor) -> Tensor:
        halves = F.layer_norm(x, x.shape[-1:]).chunk(3, dim=1)
        return torch.cat([F.silu(half) for half in halves], dim=1)[:, [0, 2]].add_(1)

    with Watch():
        found = compute(X)
    assert torch.equal(found, compute(X))
