"""What our side as it is by default measures before it runs as it will: how long, and what is taken then."""

from __future__ import annotations

from typing import Any

from lib_accel.bench.gpu.rows import Figures, Stand, placed


def warm_up_row(stand: Stand, name: str) -> Figures:
    """Measures what was not measured yet at the sizes of the case, and keeps that on disk for other rows."""
    with placed(name, stand) as one:
        ours: Any = one
        spent = ours.prepare()
        return {
            "measure_s": spent.measure_s,
            "warmup_s": spent.warmup_s,
            "contests": ours.contests(),
            "about": dict(ours.about()),
        }
