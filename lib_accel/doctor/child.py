"""Imports packages in a process of its own: some end the process, print, or never come back.

Run as `python -m lib_accel.doctor.child MODULE ...`; writes a JSON line before and after each module.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def main(modules: Sequence[str]) -> None:
    """Tries the modules in turn and writes `[module, null or what is wrong]` for each."""
    # What they print themselves must not come between our lines.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for module in modules:
            print(json.dumps([module]), file=out, flush=True)
            print(json.dumps([module, _fault(module)]), file=out, flush=True)


def _fault(module: str) -> str | None:
    try:
        _TRIALS.get(module, importlib.import_module)(module)
    except (Exception, SystemExit) as error:  # whatever a half-installed package raises is the finding
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _try_xformers(module: str) -> None:
    """Raises if its attention has no kernel for the first GPU; without one, only imports it."""
    ops: Any = importlib.import_module("xformers.ops")
    torch: Any = importlib.import_module("torch")
    if torch.cuda.is_available():
        q = torch.zeros(1, 16, 1, 32, device="cuda", dtype=torch.float16)
        ops.memory_efficient_attention(q, q, q)


_TRIALS: Mapping[str, Callable[[str], Any]] = {"xformers": _try_xformers}

if __name__ == "__main__":
    main(sys.argv[1:])
