"""The GPU's memory, before the webui runs something large beside the models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from lib_accel.patching import Method

# With less than this part of a GPU's memory to be had, an upscaler shall have all that can be given up.
_ENOUGH = 4


def making_room(release: Callable[[], None]) -> Callable[[Method], Method]:
    """For Upscaler.upscale (modules/upscaler.py): calls `release` first where memory is short."""

    def make(original: Method) -> Method:
        @functools.wraps(original)
        def upscale(*args: Any, **kwargs: Any) -> Any:
            if is_short():
                release()
                torch.cuda.empty_cache()  # torch would, when it runs short; other libraries cannot
            return original(*args, **kwargs)

        return upscale

    return make


def is_short() -> bool:
    """Whether torch can get less than a quarter of the current GPU's memory; never without one."""
    if not torch.cuda.is_available():
        return False
    free, total = torch.cuda.mem_get_info()
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return free + cached < total / _ENOUGH
