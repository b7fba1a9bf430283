"""Which torch operations a call launches, in order: equal lists mean equal work, whatever the clock says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], Any]) -> list[str]:
    """Names of the operations that the call launches, such as "aten.convolution.default"."""
    recorder = _Recorder()
    with recorder:
        call()
    return recorder.names


def digest(names: Sequence[str]) -> str:
    """A fingerprint of the list: equal for equal names in the same order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
