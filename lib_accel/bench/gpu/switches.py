"""A change of all LoRAs on a UNet: ours, and each merged by itself, against what memory needs at least."""

from __future__ import annotations

from statistics import median

from lib_accel.bench.gpu.floors import floor_ms
from lib_accel.bench.gpu.networks import RANK
from lib_accel.bench.gpu.rows import Figures, Stand, peak_mib
from lib_accel.bench.gpu.timing import Turn, alone_ms, paired_ms, ratio_figures


def switch_row(stand: Stand, name: str) -> Figures:
    """Milliseconds until all weights carry the LoRAs of the case, from tensors that are on the device."""
    stage, pace = stand.stage, stand.pace
    networks, device, count = stage.networks, stage.where.device, stage.case.networks
    assert networks is not None

    def ours() -> None:
        networks.wear(count)

    def by_each() -> None:
        networks.merge_one_by_one(count)

    times = paired_ms(Turn.of(by_each), Turn.of(ours), device, pace)
    off = alone_ms(Turn.of(lambda: networks.wear(0)), device, pace)
    networks.wear(0)
    least = floor_ms(0.0, networks.moved_bytes)
    figures = ratio_figures(times)
    return {
        **figures,
        "off_ms": median(off),
        "rank": RANK,
        "bytes": networks.moved_bytes,
        "floor_ms": least,
        "floor_share": least / figures["ms"],
        "floor_source": "bytes of bases and weights",
        "restores_bits": networks.is_pristine(),
        "peak_mib": peak_mib(ours, device),
    }
