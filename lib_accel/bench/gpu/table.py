"""The suite of GPUs as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lib_accel.bench.gpu import parts
from lib_accel.bench.gpu.file import DONE
from lib_accel.bench.gpu.kernels_table import KERNEL_REMARKS, kernels, tunings
from lib_accel.bench.gpu.operators_table import (
    OPERATOR_REMARKS,
    nears,
    operators,
    taken,
    warm_ups,
)
from lib_accel.bench.gpu.pieces_rows import PIECES_REMARKS, pieces_table
from lib_accel.bench.table import aligned

Figures = Mapping[str, Any]

REMARKS = (
    "ms: of one call of the model, median of runs in the order A B B A with stock, which is eager SDPA",
    "ratio: stock's ms divided by the side's, median over pairs, with its 95 % interval",
    "floor: what FLOP or bytes take at least on the GPU that the floors name; on others shares do not count",
    "launches: kernels and graphs that the program starts, by torch's profiler; on a CPU operations of torch",
    "norm: of the output; rel_l2, max_abs: from eager SDPA's; rel_l2_fp32 from the same weights in float32",
    "yardstick: rel_l2 of stock with flash attention from stock with efficient attention",
    "peak_mib: most that torch reserved of the GPU during calls, weights shared with stock",
    "compile_s: compiling alone; warmup_s: all other calls until the side runs as it does later",
    "weights are random; LoRAs have rank 16 and lie on the device",
    *PIECES_REMARKS,
    *OPERATOR_REMARKS,
    *KERNEL_REMARKS,
)

_DRY = "dry run on the CPU, with toys: these figures say that all works, and nothing of speed"


def gpu_table(figures: Figures) -> str:
    """The machine, a section for each part, what follows from the rows, and what was not measured and why."""
    rows: list[Figures] = list(figures["rows"].values())
    sections = [machine_line(figures["environment"])]
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part and row["status"] == DONE]
        if own:
            sections.append(f"{part}\n{_SECTIONS[own[0]['kind']](own)}")
    sections += filter(None, (_facts(rows), _unmeasured(rows)))
    return "\n\n".join(sections)


def machine_line(about: Figures) -> str:
    """What was measured on, in one line."""
    if about["dry_run"]:
        return _DRY
    words = [f"{about['gpu']}, {_text(about.get('power_limit_w'), '.0f')} W", f"driver {about.get('driver')}"]
    words += [f"{name} {about.get(name)}" for name in ("torch", "triton", "cuda", "cudnn")]
    return ", ".join(words)


def _speed(rows: list[Figures]) -> str:
    headings = (
        "case",
        "side",
        "calls/s",
        "ms",
        "ratio",
        "95 %",
        "floor",
        "launches",
        "peak MiB",
        "warm-up s",
        "compile s",
        "rel-L2",
        "yardstick",
    )
    return aligned(headings, [_speed_row(row) for row in rows])


def _speed_row(row: Figures) -> list[str]:
    yardstick = row["yardstick"]
    return [
        row["case"],
        row["side"],
        f"{row['calls_per_s']:.4g}",
        f"{row['ms']:.4g}",
        f"{row['ratio']:.3f}",
        f"{row['ratio_low95']:.3f}-{row['ratio_high95']:.3f}" if "ratio_low95" in row else "-",
        f"{100 * row['floor_share']:.3g} %",
        _text(row["launches"], "d"),
        _text(row["peak_mib"], ".0f"),
        f"{row['warmup_s']:.1f}",
        f"{row['compile_s']:.1f}",
        f"{row['rel_l2']:.1e}",
        f"{yardstick:.1e}" if isinstance(yardstick, float) else "-",
    ]


def _switches(rows: list[Figures]) -> str:
    headings = ("case", "ours ms", "off ms", "one by one ms", "ratio", "95 %", "floor ms", "times the floor")
    return aligned(
        headings,
        [
            [
                row["case"],
                f"{row['ms']:.3g}",
                f"{row['off_ms']:.3g}",
                f"{row['stock_ms']:.3g}",
                f"{row['ratio']:.2f}",
                f"{row['ratio_low95']:.2f}-{row['ratio_high95']:.2f}",
                f"{row['floor_ms']:.3g}",
                f"{1 / row['floor_share']:.1f}",
            ]
            for row in rows
        ],
    )


def _profiles(rows: list[Figures]) -> str:
    blocks = []
    for row in rows:
        largest = aligned(
            ("kernel", "launches", "ms", "share"),
            [
                [each["kernel"], str(each["launches"]), f"{each['ms']:.3g}", f"{100 * each['share']:.0f} %"]
                for each in row["largest"]
            ],
        )
        roofline = aligned(
            ("operation", "calls", "ms", "floor ms", "floor"),
            [
                [
                    each["operation"],
                    str(each["calls"]),
                    f"{each['ms']:.3g}",
                    f"{each['floor_ms']:.3g}",
                    "-" if each["floor_share"] is None else f"{100 * each['floor_share']:.0f} %",
                ]
                for each in row["roofline"]
            ],
        )
        head = f"{row['case']}, {row['side']}: {row['kernels']} kernels, {row['kernels_ms']:.3g} ms a call, "
        head += f"{row['outside_ms']:.3g} of them of no operation"
        blocks.append(f"{head}\n{largest}\n{roofline}")
    return "\n".join(blocks)


_SECTIONS: Mapping[str, Callable[[list[Figures]], str]] = MappingProxyType(
    {
        parts.SPEED: _speed,
        parts.SWITCH: _switches,
        parts.PROFILE: _profiles,
        parts.KERNELS: kernels,
        parts.TUNING: tunings,
        parts.OPERATORS: operators,
        parts.NEAR: nears,
        parts.WARM_UP: warm_ups,
        parts.PIECES: pieces_table,
    }
)


def _facts(rows: list[Figures]) -> str:
    """What the rows say together."""
    done = [row for row in rows if row["status"] == DONE]
    lines = [
        f"{side}: the launches of a call are {'the same list' if same else 'DIFFERENT lists'} with "
        f"{', '.join(counts)}"
        for side, (same, counts) in flat_launches(done).items()
    ]
    switched = [row for row in done if row["kind"] == parts.SWITCH]
    if switched:
        bits = all(row["restores_bits"] for row in switched)
        lines.append(f"weights after the LoRAs are off: {'the very bits' if bits else 'OTHER bits'}")
    far = [
        f"{row['part']} / {row['case']} / {row['side']}"
        for row in done
        if isinstance(row.get("yardstick"), float) and row["rel_l2"] > row["yardstick"]
    ]
    if far:
        lines.append(f"farther from stock than stock's attentions are from each other: {'; '.join(far)}")
    return "\n".join([*lines, *taken(done), *_held_back(done)])


def _held_back(done: list[Figures]) -> list[str]:
    """What of our sides ran as stock, or without the graph that was asked for, and why."""
    lines = []
    for row in done:
        about = row.get("about") or {}
        reasons = {**about.get("reasons", {}), **about.get("recorded", {}).get("reasons", {})}
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        if told:
            lines.append(f"{row['part']} / {row['case']} / {row['side']}: held back: {told}")
    return lines


def flat_launches(rows: list[Figures]) -> dict[str, tuple[bool, list[str]]]:
    """By side: whether calls launch one list with any number of LoRAs, and which numbers were compared."""
    by_side: dict[str, list[Figures]] = {}
    for row in rows:
        if row["part"] == "loras" and row["status"] == DONE:
            by_side.setdefault(row["side"], []).append(row)
    return {
        side: (
            len({row.get("kernels_list") or row["operations_list"] for row in own}) == 1,
            [row["case"].rpartition(", ")[2] for row in own],
        )
        for side, own in by_side.items()
        if len(own) > 1
    }


def _unmeasured(rows: list[Figures]) -> str:
    return "\n".join(
        f"{row['status']}: {row['part']} / {row['case']} / {row['side']}: {row['reason']}"
        for row in rows
        if row["status"] != DONE
    )


def _text(value: Any, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
