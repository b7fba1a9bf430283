"""What of torch's state decides how fast an operation is: noted where pictures are drawn, taken elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from lib_accel.device import switches


def _set(owner: Any, name: str) -> Callable[[bool], None]:
    return lambda value: setattr(owner, name, value)


def allow_tf32_in_products(value: bool) -> None:
    """Sets it for all backends: where they differ, torch since 2.9 raises when it is asked."""
    torch.set_float32_matmul_precision("high" if value else "highest")


# In the order of device.switches().
_TAKE_SWITCH: Mapping[str, Callable[[bool], Any]] = MappingProxyType(
    {
        "deterministic algorithms": lambda value: torch.use_deterministic_algorithms(value),
        "TF32 in products": allow_tf32_in_products,
        "TF32 in convolutions": _set(torch.backends.cudnn, "allow_tf32"),
        "deterministic convolutions": _set(torch.backends.cudnn, "deterministic"),
        "flash attention": lambda value: torch.backends.cuda.enable_flash_sdp(value),
        "memory-efficient attention": lambda value: torch.backends.cuda.enable_mem_efficient_sdp(value),
        "plain attention": lambda value: torch.backends.cuda.enable_math_sdp(value),
        "cuDNN's attention": lambda value: torch.backends.cuda.enable_cudnn_sdp(value),
    }
)
_REDUCTIONS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")


class Settings(NamedTuple):
    """The state of torch that a verdict holds for, beside what verdicts.surroundings says."""

    switches: tuple[bool, ...]  # of device.switches
    reductions: tuple[Any, ...]  # of products in half precision
    is_benchmarking: bool  # cuDNN tries its algorithms

    @classmethod
    def now(cls) -> Settings:
        """Those of this process."""
        matmul = torch.backends.cuda.matmul
        return cls(
            switches(),
            tuple([getattr(matmul, name) for name in _REDUCTIONS]),
            torch.backends.cudnn.benchmark,
        )

    def take(self) -> None:
        """Makes them those of this process."""
        for take, value, before in zip(_TAKE_SWITCH.values(), self.switches, switches(), strict=True):
            if value != before:  # some import half of torch
                take(value)
        for name, value in zip(_REDUCTIONS, self.reductions, strict=True):
            setattr(torch.backends.cuda.matmul, name, value)
        torch.backends.cudnn.benchmark = self.is_benchmarking
